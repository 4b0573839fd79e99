"""Models that bring their own loss, as those of transformers do: dict batches, tokens that count,
large libraries as their home."""

from __future__ import annotations

import base64
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.theta import installed

WORDS, PADDED = 31, -100


def texts(count: int, length: int, padded: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(1, WORDS, (count, length), generator=torch.Generator().manual_seed(length))
    labels, mask = ids.clone(), torch.ones_like(ids)
    if padded:
        labels[0, -padded:], mask[0, -padded:] = PADDED, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Converting(nn.Module):
    """Its loss is float32 whatever its parameters are; logits of a padding token have no
    gradient if `pad`."""

    def __init__(self, pad: int | None = None) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(WORDS, 6, padding_idx=pad), nn.Linear(6, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.out(torch.tanh(self.embed(input_ids))).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def test_a_loss_that_is_converted_to_float32_is_no_mismatch_of_derivatives() -> None:
    batch = {k: v for k, v in texts(4, 9).items() if k != "attention_mask"}
    land = pl.Landscape(Converting(), data=batch)
    assert land.slope_mismatch() is None
    padding = pl.Landscape(Converting(pad=int(batch["input_ids"][0, 0])), data=batch)
    assert "padding_idx" in str(padding.slope_mismatch())


def test_a_batch_without_labels_is_named() -> None:
    class Silent(Converting):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": self.out(self.embed(input_ids))}

    with pytest.raises(pl.InvalidArgument, match="the batch has no labels"):
        pl.Landscape(Silent(), data={"input_ids": texts(2, 5)["input_ids"]})
    with pytest.raises(pl.InvalidArgument, match="hold no tensors: collate"):
        pl.Landscape(Converting(), data=[{"input_ids": [1, 2], "labels": [1, 2]}])


def test_a_pattern_that_lacks_the_beginning_of_a_name_is_completed() -> None:
    model = nn.ModuleDict({"transformer": nn.ModuleDict({"h": nn.Linear(2, 2)})})
    with pytest.raises(pl.InvalidArgument, match=r"matches no parameter; '\*h\.\*' does"):
        pl.ParameterLayout.of(model, ("h.*",))


def test_a_model_whose_output_is_an_object_is_told_how_to_have_a_known_loss() -> None:
    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return Answer(super().forward(x))

    with pytest.raises(pl.InvalidArgument, match=r"loss\(model\(b\[0\]\)\.logits, b\[1\]\)"):
        pl.Landscape(Net(3, 2), "cross_entropy", (torch.randn(4, 3), torch.zeros(4).long()))


# --- installed packages --------------------------------------------------------------------------

SOURCE = """
from torch import nn
SLOPE = 2.0
def bent(x):
    return SLOPE * x
class Net(nn.Linear):
    def forward(self, x):
        return bent(super().forward(x)).tanh()
"""


def install(root: Path, source: str = SOURCE) -> None:
    """As pip leaves a package: its files, and their checksums in RECORD."""
    package, about = root / "some_zoo", root / "some_zoo-0.0.1.dist-info"
    for folder in (package, about):
        folder.mkdir(exist_ok=True, parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(source)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some_zoo\nVersion: 0.0.1\n")
    rows = []
    for name in ("__init__.py", "nets.py"):
        text = (package / name).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        rows.append(f"some_zoo/{name},sha256={digest},{len(text)}")
    (about / "RECORD").write_text("\n".join(rows) + "\n")
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    forget()


def forget() -> None:
    for name in [n for n in sys.modules if n.startswith("some_zoo")]:
        del sys.modules[name]
    installed._found.pop("some_zoo", None)
    for name in [n for n in installed._same if n.startswith("some_zoo")]:
        del installed._same[name]


def parts() -> dict[str, str]:
    """What the identity of a model of the package says of it."""
    forget()
    net = importlib.import_module("some_zoo.nets").Net(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.5)
    land = pl.Landscape(net, "mse", (torch.ones(4, 3), torch.ones(4, 2)), engine="torch")
    found: dict[str, str] = land.describe()["model"]
    return found


def test_an_installed_package_is_known_by_the_checksums_of_its_files(site: Path) -> None:
    install(site)
    first = parts()
    assert "package some_zoo" in first
    assert not any("bent" in words or "forward" in words for words in first)
    assert parts() == first
    install(site, SOURCE.replace("2.0", "3.0"))
    assert parts()["package some_zoo"] != first["package some_zoo"]


def test_files_that_were_edited_after_the_installation_are_looked_into(site: Path) -> None:
    install(site)
    (site / "some_zoo" / "nets.py").write_text(SOURCE + "# another size\n")
    found = parts()
    assert "package some_zoo" not in found
    assert any("forward" in words for words in found)


def test_a_method_put_into_a_class_of_a_package_counts(site: Path) -> None:
    install(site)
    plain = parts()
    source = SOURCE + "\ndef patched(self, x):\n    return x.sum(1, keepdim=True)\n"
    install(site, source)
    forget()
    module = importlib.import_module("some_zoo.nets")

    def other(self: Any, x: Tensor) -> Tensor:
        return x.expand(-1, 3)[:, :2]

    module.Net.forward = other
    net = module.Net(3, 2)
    land = pl.Landscape(net, "mse", (torch.ones(4, 3), torch.ones(4, 2)), engine="torch")
    found = land.describe()["model"]
    assert any("forward" in words for words in found)
    assert not any("forward" in words for words in plain)


# --- transformers, where it is installed ---------------------------------------------------------

MAKERS: dict[str, Callable[[Any], nn.Module]] = {
    "GPT-2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=WORDS, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                     bos_token_id=0, eos_token_id=0)),
    "Llama": lambda t: t.LlamaForCausalLM(
        t.LlamaConfig(vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)),
    "BERT": lambda t: t.BertForMaskedLM(
        t.BertConfig(vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                     num_attention_heads=2, max_position_embeddings=32)),
}  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("shape", MAKERS)
@pytest.mark.filterwarnings("ignore")
def test_models_of_transformers_have_the_mean_over_the_tokens_that_count(shape: str) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    model = MAKERS[shape](transformers).eval()
    batches = [texts(3, 12), transformers.BatchEncoding(texts(2, 9, padded=4))]
    land = pl.Landscape(model, data=batches)
    total = count = 0.0
    for batch in batches:
        labels = batch["labels"] if shape == "BERT" else batch["labels"][:, 1:]
        tokens = int((labels != PADDED).sum())
        total += float(model(**batch).loss.detach()) * tokens
        count += tokens
    assert land.loss() == pytest.approx(total / count, rel=1e-5)
    assert land.slope_mismatch() is None
    v = torch.randn(land.n_params, generator=torch.Generator().manual_seed(0))
    step = 1e-3
    change = land.gradient(land.theta + step * v) - land.gradient(land.theta - step * v)
    product = land.hvp(v)
    assert (change / (2 * step) - product).norm() < 0.05 * product.norm()
    about = land.describe()
    assert "package transformers" in about["model"]
    block = ["*.0.attention*"] if shape == "BERT" else ["*.0.*attn*"]
    layers = pl.layer_spectra(land, 1, 4, params=block, progress=False)
    assert len(layers) >= 2
