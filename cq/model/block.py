"""One layer of the transformer: attention and feed-forward. Knows no strategy, and not where norms stand:
transformer.py does."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from .. import _core
from .activation import Activation
from .attention import Attention
from .batch import Batch
from .forms import Fixed, PerHead, PerToken, Smoothed
from .linear import Linear, QuantizedLinear, Then, joined
from .norm import Norm


class FeedForward:
    """down(act(up(x))), or gated down(act(gate(x)) * up(x)) (Shazeer 2020), of which a Hadamard transform may be taken
    before the down projection (Config.hadamard)."""

    _NOT_JOINED: ClassVar[tuple[None, None, None]] = (None, None, None)

    def __init__(self, up: Linear, down: Linear, gate: Linear | None, activation: str, hadamard: int | None = None):
        self.up: Linear | QuantizedLinear = up
        self.down: Linear | QuantizedLinear = down
        self.gate: Linear | QuantizedLinear | None = gate
        self.activation = activation
        self.hadamard = hadamard or 0
        self._derived: tuple[object, object, Linear | QuantizedLinear | None] = self._NOT_JOINED

    def __getstate__(self) -> dict:
        """Of a copy, pickled or not: it joins its own layers."""
        return self.__dict__ | {"_derived": self._NOT_JOINED}

    def _joined(self) -> Linear | QuantizedLinear | None:
        """Gate and up as one product, gated in its own pass, where both are of one kind."""
        if self.gate is None:
            return None
        gate, up, joint = self._derived
        if gate is not self.gate or up is not self.up:
            joint = joined((self.gate, self.up))
            self._derived = self.gate, self.up, joint
        return joint

    def readers(self) -> tuple[Linear | QuantizedLinear, ...]:
        return (self.up,) if self.gate is None else (self.gate, self.up)

    def __call__(
        self, x: Activation, batch: Batch, site: str, then: Then
    ) -> tuple[Activation, np.ndarray | _core.Coded]:
        """x (tokens, hidden) → what follows the down projection."""
        form = self.down.input_form
        form = form if isinstance(form, (Fixed, PerToken, Smoothed)) else None
        if self.gate is None:
            hidden = self.up(x, form)
        elif (joint := self._joined()) is not None:
            hidden = joint.gated(x, self.activation, form, self.hadamard)
        else:
            hidden = _core.gate(self.gate(x), self.up(x), self.activation, form, self.hadamard)
        batch.tap(site + "hidden", hidden)
        return self.down(Activation.of(hidden, form), None, then)


class Block:
    """attention, ffn, the norms before each part or after the sum (Config.norm_first), and those of what the parts
    give; None where there is none. name: "layers.3". streams: the Fixed forms in which the residual stream leaves each
    of the two parts, or None each: float32."""

    def __init__(
        self,
        attention: Attention,
        ffn: FeedForward,
        attention_norm: Norm | None,
        ffn_norm: Norm | None,
        attention_output_norm: Norm | None,
        ffn_output_norm: Norm | None,
        name: str,
    ):
        self.attention, self.attention_norm, self.ffn, self.ffn_norm = attention, attention_norm, ffn, ffn_norm
        self.attention_output_norm, self.ffn_output_norm = attention_output_norm, ffn_output_norm
        self.name = name
        self.streams: tuple[Fixed | None, Fixed | None] = (None, None)

    def parts(self) -> tuple:
        """Layers, norms and forms: all that may be replaced."""
        a, f = self.attention, self.ffn
        return (
            a.query,
            a.key,
            a.value,
            a.output,
            a.forms,
            self.attention_norm,
            self.attention_output_norm,
            f.gate,
            f.up,
            f.down,
            self.ffn_norm,
            self.ffn_output_norm,
            self.streams,
        )


def share(blocks: list[Block]) -> None:
    """Attention and feed-forward parts that are made of the same arrays in the same way become one, so that what they
    pack and join is in memory once."""
    kept: dict[tuple, Attention | FeedForward] = {}
    for block in blocks:
        for name in ("attention", "ffn"):
            part = getattr(block, name)
            setattr(block, name, kept.setdefault((name, *_made_of(part)), part))


def _made_of(part: Attention | FeedForward) -> Iterator:
    for value in [value for name, value in sorted(vars(part).items()) if name != "_derived"]:
        if isinstance(value, Linear):
            yield id(value.source), id(value.bias), value.activation, value.reason
        elif isinstance(value, Norm):
            yield id(value.weight), id(value.bias)
        else:
            yield value if isinstance(value, str | int | float | tuple | PerHead | None) else id(value)
