"""Lowering of attention: scaled_dot_product_attention, nn.MultiheadAttention, encoder layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._native import core
from .interpreter import Call, op
from .matmul import Labelled, broadcast, contract, dims, labelled, leading
from .of_data import TAKE_DATA
from .shapes import filled
from .values import Fixed, Known, OfData, Slot, Unread, counting, later


@op("scaled_dot_product_attention")
def _scaled_dot_product_attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Slot:
    if dropout_p != 0.0:
        raise call.refuse(f"dropout_p={dropout_p}")
    if enable_gqa:  # each head of key and value serves several queries in a row
        query, key, value = (call.view(x) for x in (query, key, value))
        heads = call.lowering.full(query).shape[-3]
        key, value = (_repeated(call, x, heads) for x in (key, value))
    if isinstance(attn_mask, Known) and attn_mask.value.dtype == torch.bool:
        attn_mask = Known(~attn_mask.value)  # here, true is what takes part
    if isinstance(attn_mask, OfData):
        form = "seen" if attn_mask.value.dtype == torch.bool else "added"
        attn_mask = call.lowering.data_slot(attn_mask, form)
    query, key, value = (call.rows(x) for x in (query, key, value))
    operands = [
        labelled(call, call.view(x), [*leading(dims(x) - 2), *names])
        for x, names in ((query, "le"), (key, "se"), (value, "sv"))
    ]
    return attend(call, *operands, masks=(attn_mask,), causal=is_causal, scale=scale)


def _repeated(call: Call, x: Slot, heads: int) -> Slot:
    rows = call.lowering.full(x)
    return call.lowering.from_full(x, rows.repeat_interleave(heads // rows.shape[-3], -3))


def attend(
    call: Call,
    query: Labelled,
    key: Labelled,
    value: Labelled,
    *,
    masks: Sequence[Any] = (),
    causal: bool = False,
    scale: float | None = None,
) -> Slot:
    """softmax(scale q k^T + masks) v for labels (..., l, e), (..., s, e) and (..., s, v).

    A mask is added, or true where nothing is seen, or None.
    """
    query, key, value = broadcast(call, (query, key, value))
    if scale is None:
        scale = 1.0 / math.sqrt(query.sizes()["e"])
    pairs = (*query.labels[:-2], "l", "s")
    scores = contract(call, query, key, pairs, float(scale))
    hidden = torch.ones(scores.shape[-2:]).triu(1).bool() if causal else None
    for mask in masks:
        if hidden is None and isinstance(mask, Known) and _is_hiding(mask.value):
            hidden = mask.value
        elif mask is not None:
            scores = _masked(call, scores, mask)
    seen = None if hidden is None else _first_seen(scores, hidden)
    if hidden is not None and seen is None:
        scores = _masked(call, scores, Known(hidden))
    weights = softmax_last(call, scores, seen)
    return contract(call, Labelled(weights, pairs), value, (*query.labels[:-2], "l", "v"))


def _masked(call: Call, scores: Slot, mask: Any) -> Slot:
    """Scores with -inf where a mask is true, or plus the mask."""
    samples = call.lowering.samples
    shape = (*scores.shape[: scores.axis], samples, *scores.shape[scores.axis :])
    if isinstance(mask, Known) and mask.value.dtype == torch.bool:
        return filled(call, scores, mask.value.broadcast_to(shape), float("-inf"))
    if isinstance(mask, Slot):
        full = call.lowering.full(mask).broadcast_to(shape)
        return plus(call, scores, call.placed(call.lowering.from_full(mask, full), scores))
    if not isinstance(mask, Fixed):
        raise call.refuse("a mask that is computed from the input")
    wide = mask.view(mask.elements().broadcast_to(shape))
    return plus(call, scores, call.placed(wide, scores))


def _is_hiding(mask: Tensor) -> bool:
    """Whether a mask of bool has two dimensions, as one that is the same for all samples."""
    return mask.dtype == torch.bool and mask.dim() == 2


def _first_seen(scores: Slot, hidden: Tensor) -> list[int] | None:
    """How many keys each query of the scores (..., l, s) sees, where these are the first ones; of
    the mask (l, s), true where nothing is seen."""
    if scores.axis > len(scores.shape) - 2 or hidden.shape != scores.shape[-2:]:
        return None
    seen = (~hidden).sum(-1)
    if not torch.equal(hidden, counting(hidden.shape[-1]) >= seen[:, None]) or int(seen.min()) < 1:
        return None
    return seen.repeat(prod(scores.shape[:-2])).tolist()


def softmax_last(call: Call, x: Slot, first: list[int] | None = None) -> Slot:
    """Softmax over the last dimension, over so many of its elements where that is given."""
    x = call.lowering.in_order(x)
    sizes = prod(x.shape[:-1]), x.shape[-1], 1
    found = call.program.softmax(x.id, False, *sizes, [] if first is None else first)
    return Slot(found, x.shape, x.axis)


def plus(call: Call, x: Slot, y: Slot) -> Slot:
    """x + y of equal shapes."""
    if not call.lowering.covers(x):
        x = call.lowering.in_order(x)
    y = call.lowering.reordered(y, x)
    found = call.program.binary(core.Binary.add, x.id, y.id)
    return Slot(found, x.shape, x.axis, x.index)


def _source(call: Call, tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if id(tensor) not in call.lowering.sources:
        raise call.refuse("a tensor that is not a parameter or buffer")
    return call.lowering.sources[id(tensor)]


def linear_last(call: Call, x: Slot, m: int, weight: int, bias: int | None) -> Slot:
    """A linear layer with m results over the last dimension."""
    x = call.lowering.in_order(x)
    *outer, k = x.shape
    found = call.program.linear(x.id, prod(outer), k, m, weight, bias)
    return Slot(found, (*outer, m), x.axis)


def _part(x: Slot, first: int, size: int) -> Slot:
    """Elements first .. first + size - 1 of the last dimension."""
    index = counting(prod(x.shape)).view(x.shape) if x.index is None else x.index
    return Slot(x.id, (*x.shape[:-1], size), x.axis, index[..., first : first + size])


@op("MultiheadAttention")
def _multihead_attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Slot, Unread]:
    operands = [call.view(call.rows(x)) for x in (query, key, value)]
    weights = Unread("the weights of nn.MultiheadAttention")
    padding = _padding(call, key_padding_mask)
    return multihead(call, call.function, operands, attn_mask, padding), weights


def _padding(call: Call, mask: Any) -> Any:
    """What is added to the scores of each key for a padding mask (N, keys)."""
    if mask is None:
        return None
    if isinstance(mask, OfData):
        form = "hidden" if mask.value.dtype == torch.bool else "added"
        mask = call.lowering.data_slot(mask, form)
    if not isinstance(mask, Slot) or mask.axis != 0 or len(mask.shape) != 1:
        raise call.refuse("a key_padding_mask that is not of the data (N, keys)")
    return mask


def multihead(
    call: Call,
    m: nn.MultiheadAttention,
    operands: Sequence[Slot],
    mask: Any = None,
    padding: Slot | None = None,
) -> Slot:
    """The first result of nn.MultiheadAttention for query, key and value."""
    if m.bias_k is not None or m.bias_v is not None or m.add_zero_attn:
        raise call.refuse("bias_k, bias_v or add_zero_attn")
    if m.training and m.dropout:
        raise call.refuse("dropout that is active in eval mode")
    if any(x.axis != (0 if m.batch_first else 1) or len(x.shape) != 2 for x in operands):
        raise call.refuse("an input that is not (batch, length, features), or as batch_first says")
    q, k, v = _projections(call, m, operands)
    # Nothing moves: the heads are other indices of the same rows.
    heads = [_heads(call, x, m.num_heads, last) for x, last in ((q, "le"), (k, "se"), (v, "sv"))]
    mask = call.rows(mask)
    if mask is not None and (
        isinstance(mask, Slot)
        or len(mask.value.shape if isinstance(mask, Known) else mask.shape) != 2
    ):
        raise call.refuse("a mask per sample")
    masks = (mask, padding and _of_keys(call, padding))
    y = attend(call, *heads, masks=masks)  # (N, h, l, v), batch in front
    merged = call.lowering.rows(y).movedim(0, 1).reshape(y.shape[1], m.embed_dim)
    y = Slot(y.id, tuple(merged.shape), operands[0].axis, merged)
    out = m.out_proj
    weight = _source(call, out.weight)
    assert weight is not None
    return linear_last(call, y, m.embed_dim, weight, _source(call, out.bias))


def _of_keys(call: Call, padding: Slot) -> Slot:
    """(N, keys) as (N, 1, 1, keys)."""
    return call.lowering.from_full(padding, call.lowering.full(padding)[:, None, None, :])


def _projections(call: Call, m: nn.MultiheadAttention, operands: Sequence[Slot]) -> list[Slot]:
    """Query, key and value behind their weights, from one product where they are the same value."""
    e, bias = m.embed_dim, _source(call, m.in_proj_bias)
    packed = _source(call, m.in_proj_weight)
    if packed is not None and all(x is operands[0] for x in operands):
        fused = linear_last(call, operands[0], 3 * e, packed, bias)
        return [_part(fused, i * e, e) for i in range(3)]
    found = []
    separate = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    for i, x in enumerate(operands):
        weight = _source(call, separate[i]) if packed is None else later(packed, i * e * e)
        assert weight is not None
        found.append(linear_last(call, x, e, weight, None if bias is None else later(bias, i * e)))
    return found


def _heads(call: Call, x: Slot, heads: int, names: str) -> Labelled:
    """(length, heads * size) as (heads, length, size), the batch in front."""
    length, features = x.shape
    index = call.lowering.rows(x).reshape(length, heads, features // heads).movedim(1, 0)
    split = Slot(x.id, tuple(index.shape), 0, index)
    return Labelled(split, ("batch", "h", *names))


@op("TransformerEncoderLayer")
def _encoder_layer(
    call: Call,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Slot:
    padding = _padding(call, src_key_padding_mask)
    return encoder_layer(call, call.function, call.view(call.rows(src)), src_mask, padding)


def encoder_layer(
    call: Call, m: nn.TransformerEncoderLayer, x: Slot, mask: Any, padding: Slot | None = None
) -> Slot:
    if m.training and any(d.p for d in (m.dropout, m.dropout1, m.dropout2)):
        raise call.refuse("dropout that is active in eval mode")

    def attention(x: Slot) -> Slot:
        return multihead(call, m.self_attn, (x, x, x), mask, padding)

    def feed_forward(x: Slot) -> Slot:
        return _linear_module(
            call, m.linear2, _activated(call, m, _linear_module(call, m.linear1, x))
        )

    if m.norm_first:
        x = plus(call, x, attention(_normed(call, m.norm1, x)))
        return plus(call, x, feed_forward(_normed(call, m.norm2, x)))
    x = _normed(call, m.norm1, plus(call, x, attention(x)))
    return _normed(call, m.norm2, plus(call, x, feed_forward(x)))


@op("TransformerEncoder")
def _encoder(
    call: Call, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None
) -> Slot:
    m: nn.TransformerEncoder = call.function
    padding = _padding(call, src_key_padding_mask)
    x = call.view(call.rows(src))
    for layer in m.layers:
        if type(layer) is not nn.TransformerEncoderLayer:
            raise call.refuse(f"a layer of type {type(layer).__name__}")
        x = encoder_layer(call, layer, x, mask, padding)
    return x if m.norm is None else _normed(call, m.norm, x)


def _linear_module(call: Call, m: Any, x: Slot) -> Slot:
    if type(m) not in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise call.refuse(f"a {type(m).__name__} where a Linear is expected")
    weight = _source(call, m.weight)
    assert weight is not None
    return linear_last(call, x, m.out_features, weight, _source(call, m.bias))


def _normed(call: Call, m: Any, x: Slot) -> Slot:
    if type(m) is not nn.LayerNorm:
        raise call.refuse(f"a {type(m).__name__} where a LayerNorm is expected")
    x = call.lowering.in_order(x)
    size = prod(m.normalized_shape)
    found = call.program.layer_norm(
        x.id, prod(x.shape) // size, size, m.eps, _source(call, m.weight), _source(call, m.bias)
    )
    return Slot(found, x.shape, x.axis)


_ACTIVATIONS: dict[Any, str] = {F.relu: "relu", F.gelu: "gelu", torch.relu: "relu",
                                nn.ReLU: "relu", nn.SiLU: "silu", F.silu: "silu",
                                nn.Tanh: "tanh", torch.tanh: "tanh"}  # fmt: skip


def _activated(call: Call, m: nn.TransformerEncoderLayer, x: Slot) -> Slot:
    f = m.activation
    name = _ACTIVATIONS.get(type(f) if isinstance(f, nn.Module) else f)
    if isinstance(f, nn.GELU):
        name = "gelu" if f.approximate == "none" else "gelu_tanh"
    if name is None:
        raise call.refuse(f"the activation {f!r}")
    return call.unary(x, name)


TAKE_DATA.update((_scaled_dot_product_attention, _multihead_attention, _encoder_layer, _encoder))
