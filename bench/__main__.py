"""``python -m bench [--only W1,W2] [--quick] [--json FILE] [--threads N] [--repetitions R]``.

Prints one table per workload (medians over interleaved repetitions, answers checked against float64
first) and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from . import (
    cold,
    connectivity,
    dropin,
    eigen,
    errors,
    families,
    harness,
    headline,
    hessians,
    hvp,
    kernels,
    language,
    memory,
    nets,
    ranks,
    reorth,
    slq,
    topology,
    training,
    trajectories,
    vectors,
    w1,
    w2,
    w3,
    walks,
)
from .harness import Row

_TIMED = {
    "W1": w1.w1,
    "W2": w2.w2,
    "W3": w3.w3,
    "W5": vectors.w5_w6,
    "HVP": hvp.hvp,
    "NETS": nets.nets,
    "HVPNET": nets.hvpnet,
    "SLQ": slq.slq,
    "reorth": reorth.reorth,
    "eigen": eigen.eigen,
    "dropin": dropin.dropin,
    "walks": walks.walks,
    "hessians": hessians.hessians,
    "connectivity": connectivity.connectivity,
    "trajectories": trajectories.trajectories,
    "training": training.training,
    "training_norms": training.training_norms,
    "topology": topology.topology,
    "errors": errors.errors,
    "large": language.large,
    "FAMILIES": families.families,
    "ranks": ranks.ranks,
    "cold": cold.cold,
}


def main(arguments: list[str] | None = None) -> int:
    default = [*_TIMED, "memory", "kernels"]
    known = [*default, "landscaper", "headline", "eigen-resnet"]  # which take many minutes
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        default=",".join(default),
        help="of: %(default)s; landscaper, headline, eigen-resnet (long)",
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run?")
    parser.add_argument("--repetitions", type=int, default=9, help="at least 7 (%(default)s)")
    parser.add_argument("--threads", type=int, help="of every arm; default torch's")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    chosen = ["W5" if name == "W6" else name for name in options.only.split(",")]
    for name in chosen:
        if name not in known:
            parser.error(f"--only: expected some of {', '.join(known)}, got {name!r}")
    if options.repetitions < 7:
        parser.error(f"--repetitions: expected at least 7, got {options.repetitions}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if options.threads:
        torch.set_num_threads(options.threads)
    repetitions = 2 if options.quick else options.repetitions
    environment = harness.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()))
    busy: dict[str, float | None] = {}
    report: dict[str, object] = {
        "environment": environment,
        "quick": options.quick,
        "others": busy,  # share of the processors' time that went elsewhere, by workload
    }
    for name in dict.fromkeys(chosen):
        quiet = harness.Quiet()
        table: list[Row]
        if name in _TIMED:
            table = _TIMED[name](options.quick, repetitions)
            text = harness.as_markdown(table)
        elif name == "landscaper":
            table = topology.landscaper(options.quick, repetitions)
            text = harness.as_markdown(table)
        elif name == "memory":
            table = memory.memory(options.quick)
            text = memory.as_markdown(table)
        elif name == "eigen-resnet":
            table = eigen.eigen_resnet(options.quick)
            text = harness.as_markdown(table)
        elif name == "headline":
            table = headline.headline(options.quick)
            text = headline.as_markdown(table)
        else:
            table = kernels.microbenchmarks(options.quick, repetitions)
            text = kernels.as_markdown(table)
        print(f"\n{text}", flush=True)
        report[name] = table
        others = quiet.others()
        busy[name] = others
        if others is not None and others > harness.QUIET:
            print(f"({others:.0%} of the processors' time went to others: do not quote)")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
