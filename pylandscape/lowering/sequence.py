"""Lowering of embeddings and of recurrent layers and cells.

A recurrent layer becomes one product of the input, one of the last hidden state and one cell per
step. Without a second direction the layers take turns at each step, so that only their last states
are alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._native import core
from .interpreter import Call, op
from .of_data import TAKE_DATA
from .values import FILL, TAKE_KNOWN, Fixed, Known, OfData, Packed, Slot, counting

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
Rows = tuple[int, int]  # a slot and a first row of it


@op("embedding")
def _embedding(
    call: Call,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Slot | Fixed:
    if isinstance(input, Fixed):  # aten: weight, indices, padding_idx, scale_grad_by_freq, sparse
        input, weight = weight, input
        padding_idx = None if padding_idx is None or padding_idx < 0 else padding_idx
        scale_grad_by_freq, sparse = bool(max_norm), norm_type is True
        max_norm = None
    if max_norm is not None:
        raise call.refuse("max_norm, which changes the weights")
    if scale_grad_by_freq or sparse:
        raise call.refuse("scale_grad_by_freq or sparse")
    if isinstance(input, Known):
        return _rows_of_known_ids(call, input.value, weight, padding_idx)
    x, table = call.view(input), call.fixed(weight)
    if not call.lowering.all_ids(x):
        raise call.refuse("ids that are not the model's integer input")
    count, size = table.shape
    if count > 2 / torch.finfo(call.value.dtype).eps:
        raise call.refuse(f"{count} rows: more ids than {call.value.dtype} tells apart")
    padding = -1 if padding_idx is None else padding_idx % count
    rows = call.lowering.rows(x).reshape(-1).tolist()
    found = call.program.embedding(rows, count, size, padding, table.source)
    call.lowering.trace_dtype = call.value.dtype
    return Slot(found, (*x.shape, size), x.axis)


def _rows_of_known_ids(call: Call, ids: Tensor, weight: Any, padding_idx: int | None) -> Fixed:
    """A view of the table: embedded positions."""
    table = call.fixed(weight)
    count, size = table.shape
    if padding_idx is not None and bool((ids == padding_idx % count).any()):
        raise call.refuse("a padding row among ids that do not come from the input")
    index = ids.long().unsqueeze(-1) * size + counting(size)
    return Fixed(table.source, tuple(index.shape), table.size, index)


@op("pack_padded_sequence")
def _pack(
    call: Call, input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> Packed:
    x = call.view(call.rows(input))
    if len(x.shape) < 1 or x.axis != (0 if batch_first else 1):
        raise call.refuse("an input whose batch is not where batch_first says")
    steps = x.shape[0]
    if not isinstance(lengths, OfData):
        given = torch.as_tensor(lengths.value if isinstance(lengths, Known) else lengths)
        if given.dim() != 1 or not bool((given == given[0]).all()):
            raise call.refuse("lengths that differ and are no input of the model")
        lengths = steps = int(given[0])
    kept = call.lowering.rows(x)[:steps]
    return Packed(Slot(x.id, tuple(kept.shape), x.axis, kept), lengths)


@op("pad_packed_sequence")
def _pad_packed(
    call: Call,
    sequence: Any,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Slot, Known | OfData]:
    if not isinstance(sequence, Packed):
        raise call.refuse("what is not a packed sequence")
    x, lengths = sequence.x, sequence.lengths
    if total_length not in (x.shape[0], None):
        raise call.refuse(f"total_length={total_length} of sequences up to {x.shape[0]}")
    x = Slot(x.id, x.shape, 0 if batch_first else 1, x.index)
    if not isinstance(lengths, OfData):
        return x, Known(call.value[1])
    if total_length is None:
        raise call.refuse(
            f"without total_length={x.shape[0]} the result is as long as a batch's longest sequence"
        )
    own = Call(call.lowering, call.name, call.value[0], call.function)
    out = own.binary("mul", x, _every_element(own, x, lengths, "steps"))
    if padding_value:
        over = _every_element(own, x, lengths, "over")
        out = own.binary("add", out, own.unary(over, "affine", float(padding_value)))
    return out, lengths


def _every_element(call: Call, x: Slot, lengths: OfData, form: str) -> Slot:
    """Ones and zeros of every element of the padded sequences x, by its step."""
    mask = call.lowering.data_slot(lengths, form, x.shape[0])
    full = call.lowering.full(mask)  # (N, steps)
    if x.axis == 1:
        full = full.transpose(0, 1)
    full = full.reshape(*full.shape, *[1] * (len(x.shape) - 1))
    return call.lowering.from_full(mask, full.expand(call.value.shape))


@dataclass(frozen=True)
class _Masks:
    """Ones for the samples whose sequence is not over at a step, and ones for the others."""

    call: Call
    lengths: OfData
    steps: int

    def at(self, step: int, rows: int) -> tuple[int, int]:
        """The slots of both, each repeated in so many rows."""
        found = []
        for form in ("steps", "over"):
            mask = self.call.lowering.data_slot(self.lengths, form, self.steps)
            index = self.call.lowering.rows(mask)[step].expand(rows).contiguous()
            found.append(self.call.program.gather(mask.id, rows, index, 0.0))
        return found[0], found[1]


@dataclass
class _Cell:
    """One layer in one direction: its weights (sources) and the rows of its last state."""

    call: Call
    kind: str
    hidden: int
    w_ih: int
    w_hh: int
    b_ih: int | None
    b_hh: int | None
    h: Rows | None = None  # None: zeros
    c: Rows | None = None
    masks: _Masks | None = None  # of sequences of different lengths

    def step(self, x: Rows, features: int, t: int = 0) -> Rows:
        """The hidden state after the input in ``features`` rows from x on, of step t; a sequence
        that is over then keeps its state."""
        program, width = self.call.program, _GATES[self.kind] * self.hidden
        from_x = program.linear(x[0], 1, features, width, self.w_ih, self.b_ih, x[1])
        if self.h is not None:
            from_h = program.linear(
                self.h[0], 1, self.hidden, width, self.w_hh, self.b_hh, self.h[1]
            )
        elif self.b_hh is not None:
            from_h = program.expand(self.b_hh, width, list(range(width)))
        else:
            from_h = self._zeros(width)
        if self.kind in ("lstm", "gru"):
            last = self.c if self.kind == "lstm" else self.h
            slot, first = last or (self._zeros(self.hidden), 0)
            cell = getattr(core.Cell, self.kind)
            found = program.cell(cell, self.hidden, from_x, from_h, slot, first)
        else:
            total = program.binary(core.Binary.add, from_x, from_h)
            activation = getattr(core.Unary, self.kind.removeprefix("rnn_"))
            found = program.unary(total, activation, 0.0, 0.0)
        if self.masks is not None and t > 0:  # no sequence is empty
            found = self._kept(found, *self.masks.at(t, (1 + (self.kind == "lstm")) * self.hidden))
        self.h, self.c = (found, 0), (found, self.hidden)
        return self.h

    def _kept(self, found: int, going: int, over: int) -> int:
        """The new state, or the last one of sequences that are over."""
        program = self.call.program
        new: int = program.binary(core.Binary.mul, found, going)
        states = [self.h, self.c] if self.kind == "lstm" else [self.h]
        if not any(states):
            return new
        blocks = [state or (self._zeros(self.hidden), 0) for state in states]
        last = program.join([b[0] for b in blocks], [(b[1], self.hidden) for b in blocks])
        new = program.binary(core.Binary.add, new, program.binary(core.Binary.mul, last, over))
        return new

    def _zeros(self, rows: int) -> int:
        index = torch.full((rows,), FILL)
        found: int = self.call.program.gather(0, rows, index, 0.0)
        return found


def _cell(
    call: Call, kind: str, weights: Sequence[Any], h: Slot | None, c: Slot | None, number: int
) -> _Cell:
    """The cell of weights (w_ih, w_hh, b_ih, b_hh); its states are block ``number`` of h and c."""
    w_ih, w_hh, b_ih, b_hh = weights
    hidden = w_hh.shape[1]
    h_rows, c_rows = [None if s is None else (s.id, number * hidden) for s in (h, c)]
    return _Cell(
        call, kind, hidden, _source(call, w_ih), _source(call, w_hh),
        None if b_ih is None else _source(call, b_ih),
        None if b_hh is None else _source(call, b_hh), h_rows, c_rows,
    )  # fmt: skip


def _source(call: Call, value: Any) -> int:
    """Where a parameter is: lowered, or a module's own tensor."""
    if not isinstance(value, Tensor):
        return call.fixed(value).source
    if id(value) not in call.lowering.sources:
        raise call.refuse("a weight that is no parameter")
    return call.lowering.sources[id(value)]


def _states(
    call: Call, hx: Any, kind: str, shape: tuple[int, ...], axis: int
) -> tuple[Slot | None, Slot | None]:
    """The given h and c with their rows in order; None for zeros, and for c where there is none."""
    h, c = hx if kind == "lstm" and hx is not None else (hx, None)
    return _state(call, h, shape, axis), _state(call, c, shape, axis)


def _state(call: Call, x: Any, shape: tuple[int, ...], axis: int) -> Slot | None:
    if x is None or (isinstance(x, Known) and not bool(x.value.any())):
        return None
    if isinstance(x, Known):
        first = x.value.narrow(axis, 0, 1)
        if not bool((x.value == first).all()):
            raise call.refuse("a state that differs between samples")
        x = call.lowering.constant(Known(first))
    if isinstance(x, Fixed):  # the same for every sample
        return call.placed(x, Slot(-1, shape, axis))
    return call.slot(x)


@op("LSTM", "GRU", "RNN")
def _layers(call: Call, input: Any, hx: Any = None) -> Any:
    module: nn.RNNBase = call.function
    kind, hidden = module.mode.lower(), module.hidden_size
    if module.proj_size:
        raise call.refuse("proj_size")
    if module.training and module.dropout:
        raise call.refuse("dropout that is active in eval mode")
    packed = input if isinstance(input, Packed) else None
    x = call.view(call.rows(input) if packed is None else packed.x)
    if len(x.shape) != 2 or (packed is None and x.axis != (0 if module.batch_first else 1)):
        raise call.refuse("an input whose batch is not where batch_first says")
    hx = torch.fx.node.map_aggregate(hx, call.rows)
    directions = 2 if module.bidirectional else 1
    h, c = _states(call, hx, kind, (module.num_layers * directions, hidden), 1)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cells = []
    for number in range(module.num_layers * directions):
        suffix = f"_l{number // directions}" + "_reverse" * (number % directions)
        weights = [getattr(module, name + suffix, None) for name in names]
        cells.append(_cell(call, kind, weights, h, c, number))
    (steps, features), rows = x.shape, call.lowering.rows(x)
    inputs = [call.lowering.block(Slot(x.id, (features,), 0, rows[t])) for t in range(steps)]
    run = _both_ways if module.bidirectional else _one_way
    if packed is not None and isinstance(packed.lengths, OfData):
        for cell in cells:
            cell.masks = _Masks(call, packed.lengths, steps)
    parts = [(*part, hidden) for part in run(call, cells, inputs, features)]
    out: Any = call.lowering.join(parts, (steps, directions * hidden), x.axis)
    if packed is not None:
        out = Packed(out, packed.lengths)
    last_h = [(*cell.h, hidden) for cell in cells if cell.h]
    h_n = call.lowering.join(last_h, (len(cells), hidden), 1)
    if kind != "lstm":
        return out, h_n
    last_c = [(*cell.c, hidden) for cell in cells if cell.c]
    return out, (h_n, call.lowering.join(last_c, (len(cells), hidden), 1))


def _one_way(call: Call, layers: list[_Cell], inputs: list[Rows], features: int) -> list[Rows]:
    """The last layer's hidden state after every step."""
    outputs = []
    for t, x in enumerate(inputs):
        width = features
        for layer in layers:
            x, width = layer.step(x, width, t), layer.hidden
        outputs.append(x)
    return outputs


def _both_ways(call: Call, layers: list[_Cell], inputs: list[Rows], features: int) -> list[Rows]:
    """The last layer's hidden states of every step, forward and backward."""
    outputs: list[Rows] = []
    for forward, backward in zip(layers[::2], layers[1::2], strict=True):
        ahead = [forward.step(x, features, t) for t, x in enumerate(inputs)]
        behind = list(enumerate(inputs))[::-1]
        back = [backward.step(x, features, t) for t, x in behind][::-1]
        outputs = [state for both in zip(ahead, back, strict=True) for state in both]
        features = 2 * forward.hidden
        parts = [(*state, forward.hidden) for state in outputs]
        joined = call.lowering.join(parts, (len(inputs), features), 0)
        inputs = [(joined.id, t * features) for t in range(len(inputs))]
    return outputs


@op("LSTMCell", "GRUCell", "RNNCell")
def _cell_module(call: Call, input: Any, hx: Any = None) -> Any:
    m: nn.RNNCellBase = call.function
    kind = {"LSTMCell": "lstm", "GRUCell": "gru"}.get(call.name) or f"rnn_{m.nonlinearity}"
    return _one_step(call, kind, input, hx, [m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh])


@op("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell_function(
    call: Call, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    return _one_step(call, call.name.removesuffix("_cell"), input, hx, [w_ih, w_hh, b_ih, b_hh])


def _one_step(call: Call, kind: str, input: Any, hx: Any, weights: Sequence[Any]) -> Any:
    x = call.view(input)
    if len(x.shape) != 1 or x.axis != 0:
        raise call.refuse("an input without a leading batch dimension")
    hidden = weights[1].shape[1]
    h, c = _states(call, hx, kind, (hidden,), 0)
    cell = _cell(call, kind, weights, h, c, 0)
    cell.step(call.lowering.block(x), x.shape[0])
    assert cell.h is not None
    assert cell.c is not None
    new_h, new_c = [call.lowering.rows_from(*rows, hidden) for rows in (cell.h, cell.c)]
    return (new_h, new_c) if kind == "lstm" else new_h


TAKE_KNOWN.update((_layers, _cell_module, _cell_function, _pack))
TAKE_DATA.update((_layers, _pack, _pad_packed))
