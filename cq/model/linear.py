"""Linear layers: the float32 one and the one in codes that all strategies share. A layer knows the form that it reads;
its caller says the form that the next one reads. Knows no strategy: convert.py makes the layers."""

from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from .. import _core, memory
from ..qtensor import QTensor
from ..weights import FloatWeight, Weight, pack_floats
from .activation import Activation, decode
from .deferred import Deferred, read
from .forms import Fixed, Form, PerToken, ResultForm, Smoothed, common_form
from .overflow import check_layer

if TYPE_CHECKING:
    from .norm import Norm


class Linear:
    """y = act(x weight.T + bias) in float32; weight (out, in).

    source: the weight as it was given, perhaps still in its file. Once it is packed for products, this is the packed
    weight, unpacked for those who ask, so that the weight lies in memory once."""

    runs_in = "float32"
    input_form: Form = None

    def __init__(
        self,
        weight: np.ndarray | Deferred,
        bias: np.ndarray | None = None,
        activation: str | None = None,
        reason: str = "",
    ):
        self.source, self.bias, self.activation, self.reason = weight, bias, activation, reason
        self._packed: FloatWeight | None = None

    def __getstate__(self) -> dict:
        """Of a copy, pickled or not: it packs for itself."""
        return self.__dict__ | {"_packed": None}

    @property
    def weight(self) -> np.ndarray:
        """(out, in), for those who look at it once; must not be written to."""
        return read(self.source)

    @property
    def packed(self) -> FloatWeight:
        """The weight as products read it, (inputs, outputs); packed when it is first wanted."""
        packed = self._packed
        if packed is None:
            packed = pack_floats(self.weight.T)
            self._take(packed)
        return packed

    def _take(self, packed: FloatWeight) -> None:
        self.source = Deferred(self.source.shape, np.float32, lambda: packed.unpack().T)
        self._packed = packed

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.source.shape[1], self.source.shape[0]

    def arrays(self) -> list[np.ndarray | Deferred]:
        return [a for a in (self.source, self.bias) if a is not None]

    def gated(
        self, x: Activation, activation: str, form: ResultForm = None, hadamard: int = 0
    ) -> np.ndarray | _core.Coded:
        """act(gate) * up in `form`, of a layer that joins a gate and what it gates; as of _core.gate."""
        return _core.linear(
            x.floats(), self.packed, self.bias, None, activation, form=form, gated=True, hadamard=hadamard
        )

    @overload
    def __call__(self, x: Activation, form: None = None, then: None = None) -> np.ndarray: ...
    @overload
    def __call__(self, x: Activation, form: ResultForm = None, then: None = None) -> np.ndarray | _core.Coded: ...
    @overload
    def __call__(self, x: Activation, form: None, then: "Then") -> tuple[Activation, np.ndarray | _core.Coded]: ...
    def __call__(
        self, x: Activation, form: ResultForm = None, then: "Then | None" = None
    ) -> np.ndarray | _core.Coded | tuple[Activation, np.ndarray | _core.Coded]:
        """(tokens, out) in `form`: float32 or _core.Coded; or what `then` makes of it."""
        if then is not None:
            return then.after(x.floats(), self.packed, self.bias, None, self.activation)
        return _core.linear(x.floats(), self.packed, self.bias, None, self.activation, form=form)

    @classmethod
    def joined(cls, layers: tuple["Linear", ...]) -> "Linear":
        """One layer that gives the layers' outputs side by side; they share its packed weight where they fill whole
        panels."""
        widths = [layer.shape[1] for layer in layers]
        rows = Deferred(
            (sum(widths), layers[0].shape[0]), np.float32, lambda: np.concatenate([layer.weight for layer in layers])
        )
        joint, first = cls(rows, _side_by_side(layers, "bias"), layers[0].activation), 0
        packed = joint.packed
        for layer, width in zip(layers, widths):
            if first % _core.PANEL == 0:
                whole = -(-width // _core.PANEL) * _core.PANEL
                panels = packed.panels[first * packed.k : (first + whole) * packed.k]
                layer._take(FloatWeight(panels, packed.k, width))
            first += width
        return joint


class QuantizedLinear:
    """The same with int8 weights. input_form None: float32 products (weight-only); else integer products of x's codes.

    weight: packed, one scale per output (or per group and output, weight-only). bias: float32, or a QTensor of int8
    (per tensor) or int32 codes (at x_scale * w_scale, for a Fixed input)."""

    def __init__(
        self, weight: Weight, bias: np.ndarray | QTensor | None, activation: str | None, input_form: Form, runs_in: str
    ):
        """Raises UnsupportedError where an int32 sum may overflow: overflow.py proves of every layer that none does."""
        self.weight, self.bias, self.activation = weight, bias, activation
        self.input_form, self.runs_in = input_form, runs_in
        self.reason = ""
        self._bias = self._bias_i32 = None
        if isinstance(bias, QTensor):
            self._bias = bias.dequantize()
        elif bias is not None and bias.dtype == np.int32:
            self._bias_i32 = bias
        else:
            self._bias = bias
        if input_form is not None:
            check_layer(weight, input_form, self._bias_i32)

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.weight.shape

    @property
    def bias_codes(self) -> np.ndarray | None:
        """The bias where it is int32 codes, which sums begin with."""
        return self._bias_i32

    @property
    def bias_floats(self) -> np.ndarray | None:
        """The bias where it is not: float32, or what codes of 8 bits stand for."""
        return self._bias

    def arrays(self) -> list[np.ndarray]:
        weight, form = self.weight, self.input_form
        columns = (
            (form.columns.scale, form.columns.inverse, form.columns.zero_point) if isinstance(form, Smoothed) else ()
        )
        return [
            a
            for a in (
                weight.panels,
                weight.column_sums,
                weight.zero_points,
                weight.scales,
                self._bias,
                self._bias_i32,
                *columns,
            )
            if a is not None
        ]

    def gated(
        self, x: Activation, activation: str, form: ResultForm = None, hadamard: int = 0
    ) -> np.ndarray | _core.Coded:
        """act(gate) * up in `form`, of a layer that joins a gate and what it gates; as of _core.gate."""
        given, coding = x.for_product(self.input_form)
        return _core.linear(
            given,
            self.weight,
            self._bias,
            self._bias_i32,
            activation,
            form=form,
            coding=coding,
            gated=True,
            hadamard=hadamard,
        )

    @overload
    def __call__(self, x: Activation, form: None = None, then: None = None) -> np.ndarray: ...
    @overload
    def __call__(self, x: Activation, form: ResultForm = None, then: None = None) -> np.ndarray | _core.Coded: ...
    @overload
    def __call__(self, x: Activation, form: None, then: "Then") -> tuple[Activation, np.ndarray | _core.Coded]: ...
    def __call__(
        self, x: Activation, form: ResultForm = None, then: "Then | None" = None
    ) -> np.ndarray | _core.Coded | tuple[Activation, np.ndarray | _core.Coded]:
        """As Linear's."""
        given, coding = x.for_product(self.input_form)
        if then is not None:
            return then.after(given, self.weight, self._bias, self._bias_i32, self.activation, coding)
        return _core.linear(given, self.weight, self._bias, self._bias_i32, self.activation, form=form, coding=coding)

    @classmethod
    def joined(cls, layers: tuple["QuantizedLinear", ...]) -> "QuantizedLinear":
        """As Linear's."""
        weights, first = [layer.weight for layer in layers], layers[0]
        panels = memory.aligned(sum(w.panels.size for w in weights))
        np.concatenate([w.panels for w in weights], out=panels)
        zero_points = None
        if any(w.zero_points is not None for w in weights):
            zero_points = np.concatenate(
                [np.zeros_like(w.scales, np.int32) if w.zero_points is None else w.zero_points for w in weights], 1
            )
        sums, scales = np.concatenate([w.column_sums for w in weights]), np.concatenate([w.scales for w in weights], 1)
        whole = Weight(panels, sums, zero_points, scales, first.weight.k, len(sums), first.weight.group_size)
        joint = cls(whole, None, first.activation, first.input_form, first.runs_in)
        joint._bias, joint._bias_i32 = _side_by_side(layers, "_bias"), _side_by_side(layers, "_bias_i32")
        shared = zip(
            *(
                _parts(array, [getattr(w, name).shape[-1] for w in weights])
                for name, array in (("panels", panels), ("column_sums", sums), ("scales", scales))
            )
        )
        for layer, w, (panels, sums, scales) in zip(layers, weights, shared):
            layer.weight = Weight(panels, sums, w.zero_points, scales, w.k, w.n, w.group_size)
        return joint


def joined(layers: tuple[Linear | QuantizedLinear, ...]) -> Linear | QuantizedLinear | None:
    """One layer in place of several that read the same input, where they are of one kind; else None."""
    if not may_join(layers):
        return None
    if isinstance(layers[0], Linear):
        return Linear.joined(tuple(layer for layer in layers if isinstance(layer, Linear)))
    return QuantizedLinear.joined(tuple(layer for layer in layers if isinstance(layer, QuantizedLinear)))


def may_join(layers: tuple[Linear | QuantizedLinear, ...]) -> bool:
    """Whether they are of one kind, and their codes follow one another in whole panels."""
    first = layers[0]
    whole = all(layer.shape[1] % _core.PANEL == 0 for layer in layers[:-1])  # packed panels follow one another
    alike = all(
        type(layer) is type(first)
        and layer.runs_in == first.runs_in
        and layer.input_form == first.input_form
        and _kind_of_bias(layer) == _kind_of_bias(first)
        for layer in layers
    )
    if isinstance(first, QuantizedLinear):
        quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
        alike = alike and whole and all(layer.weight.group_size == first.weight.group_size for layer in quantized)
    return alike


def _kind_of_bias(layer: Linear | QuantizedLinear) -> tuple[bool, ...]:
    return (layer.bias is None,) if isinstance(layer, Linear) else (layer._bias is None, layer._bias_i32 is None)


def _side_by_side(layers: tuple[Linear | QuantizedLinear, ...], name: str) -> np.ndarray | None:
    arrays = [getattr(layer, name) for layer in layers]
    return None if arrays[0] is None else np.concatenate(arrays)


def _parts(array: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Neighbours along the last axis, contiguous where that needs no copy of all but a small array."""
    parts = np.split(array, np.cumsum(sizes[:-1]), axis=-1)
    return [np.ascontiguousarray(part) for part in parts] if array.flags.c_contiguous else parts


class Then:
    """What follows a part's last layer: its result is normed by `inner`, where there is one, and multiplied by
    `factor`, the residual is added, the sum normed and coded for its readers; in the layer's own pass where neither
    stands before the residual. norm None: the readers read the sum. stream: what goes on beside them, as float32 or in
    this form: "sum", or "normed" (both float32), or a Fixed form of either."""

    __slots__ = ("residual", "norm", "form", "keep", "stream", "inner", "factor")

    def __init__(
        self,
        residual: np.ndarray | _core.Coded,
        norm: "Norm | None",
        readers: tuple[Linear | QuantizedLinear, ...],
        keep: str,
        stream: Fixed | None,
        inner: "Norm | None" = None,
        factor: float = 1.0,
    ):
        self.residual, self.norm, self.keep, self.stream = residual, norm, keep, stream
        self.inner, self.factor = inner, factor
        self.form = common_form(readers)

    def _kept(self) -> Literal["result", "both", "sum"]:
        """Which results the product gives: see _core.linear's `keep`."""
        if self.keep == "sum":
            return "sum"
        return "result" if self.form is None or self.form == self.stream else "both"

    def after(
        self,
        given: np.ndarray | _core.Coded,
        weight: _core.Packed,
        bias: np.ndarray | None,
        bias_i32: np.ndarray | None,
        activation: str | None,
        coding: PerToken | Fixed | None = None,
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """The layer's product and what follows: the readers' activation, and the stream."""
        layer = given, weight, bias, bias_i32, activation
        if self.inner is not None or self.factor != 1:
            return self._apart(_core.linear(*layer, coding=coding))
        if self.norm is None:
            stream = _core.linear(*layer, residual=self.residual, form=self.stream, coding=coding)
            return Activation.of(stream, self.stream), stream
        kept = self._kept()
        result = _core.linear(
            *layer,
            residual=self.residual,
            form=self.form,
            norm=self.norm,
            keep=kept,
            sum_form=self.stream if kept == "sum" else None,
            coding=coding,
        )
        first, stream = result if isinstance(result, tuple) else (result, result)
        x = Activation.of(first, self.form)
        if self.keep == "sum":
            return x, stream
        if kept == "both":
            assert isinstance(stream, np.ndarray), "the second of both is in float32"
            x.values = stream
        if self.stream is not None and self.form != self.stream:
            stream = x.take(self.stream)  # the readers want something else, or do not agree
        return x, stream

    def _apart(self, y: np.ndarray) -> tuple[Activation, np.ndarray | _core.Coded]:
        """What follows the layer's product, in a pass of its own."""
        residual = decode(self.residual) if isinstance(self.residual, _core.Coded) else self.residual
        floats = self.form is None
        normed, codes, stream = _core.norm(
            y, self.norm, residual, self.form, floats, self.keep == "sum", self.inner, self.factor
        )
        x = Activation(normed, None if codes is None else {self.form: codes})
        if self.keep != "sum":
            return x, x.floats()
        assert stream is not None, "the sum was asked for"
        return x, stream if self.stream is None else _core.quantize(stream, self.stream)
