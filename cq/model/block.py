"""One layer of the transformer: attention and feed-forward, norms before (Llama) or after (BERT). Knows no strategy."""
import numpy as np

from .. import _core
from .activation import Activation, Fixed, PerToken
from .attention import Attention
from .linear import Linear, QuantizedLinear
from .norm import Norm


class FeedForward:
    """down(act(up(x))), or gated down(act(gate(x)) * up(x)) (Shazeer 2020). forms: None, or the Fixed forms of gate and up
    between their products and the gating."""

    def __init__(self, up, down, gate, activation: str):
        self.up: Linear | QuantizedLinear = up
        self.down: Linear | QuantizedLinear = down
        self.gate: Linear | QuantizedLinear | None = gate
        self.activation = activation
        self.forms: tuple[Fixed, Fixed] | None = None

    def readers(self) -> tuple:
        return (self.up,) if self.gate is None else (self.gate, self.up)

    def __call__(self, x: Activation, batch, residual: np.ndarray, site: str) -> np.ndarray:
        reads = self.down.input_form
        if self.gate is None:
            form = reads if isinstance(reads, Fixed) else None
            hidden = self.up(x, form=form)
        else:
            form = reads if isinstance(reads, (Fixed, PerToken)) else None
            gate_form, up_form = self.forms or (None, None)
            gate, up = self.gate(x, form=gate_form).take(gate_form), self.up(x, form=up_form).take(up_form)
            batch.tap(site + "gate", gate), batch.tap(site + "up", up)
            hidden = Activation.of(_core.gate(gate, up, self.activation, form), form)
        batch.tap(site + "hidden", hidden.values)
        return self.down(hidden, residual).values


class Block:
    """x (tokens, hidden) → the same, through both parts. The residual stream is float32."""

    def __init__(self, attention: Attention, attention_norm: Norm, ffn: FeedForward, ffn_norm: Norm, norm_first: bool, name: str):
        self.attention, self.attention_norm, self.ffn, self.ffn_norm = attention, attention_norm, ffn, ffn_norm
        self.norm_first, self.name = norm_first, name

    def __call__(self, x: Activation, batch, next_readers: tuple) -> Activation:
        """next_readers: the layers that read the output, for the norm that makes it (post-norm)."""
        step = self._before if self.norm_first else self._after
        x = step(x, batch, self.attention, self.attention_norm, "attention.", self.ffn.readers())
        return step(x, batch, self.ffn, self.ffn_norm, "ffn.", next_readers)

    def _before(self, x, batch, part, norm, site, _next_readers) -> Activation:
        inner = norm(x.values, part.readers())
        batch.tap(f"{self.name}.{site}input", inner.values)
        return Activation(part(inner, batch, x.values, f"{self.name}.{site}"))

    def _after(self, x, batch, part, norm, site, next_readers) -> Activation:
        batch.tap(f"{self.name}.{site}input", x.values)
        return norm(part(x, batch, x.floats(), f"{self.name}.{site}"), next_readers, keep_float=True)
