"""One block, forward and in reverse, with what its reverse needs kept from one to the other or computed anew. Knows no
other blocks."""

from collections.abc import Callable, Mapping

import numpy as np

from ..model import Config
from ..model.sites import BlockPart
from .attention import Attention
from .batch import Packed
from .convolution import Convolution
from .fake import Clipping
from .layers import Norm, Rotary
from .passes import activate, hadamard
from .reading import Reading

Pass = Callable[[np.ndarray], np.ndarray]  # of a part, forward or in reverse: (tokens, hidden) → the same


def kept_bytes(config: Config, batch: Packed, itemsize: int) -> int:
    """About what blocks keep of a pass for its reverse, in bytes: each site's floats and their codes, what norms and
    activations lead to, and the weights of attention."""
    c, tokens = config, len(batch.ids)
    heads = (c.num_heads + c.num_kv_heads) * c.head_dim
    features = 6 * c.hidden_size + 4 * heads + (5 if c.gated else 3) * c.intermediate_size
    scores = c.num_heads * sum((rows.stop - rows.start) * length for rows, length in batch.groups)
    return c.num_layers * (tokens * features + scores) * itemsize


class Block:
    """names: of its parts. norms: by name. rotary: None where it has none. convolution: beside it, or None."""

    def __init__(
        self,
        config: Config,
        names: BlockPart,
        reading: Reading,
        norms: Mapping[str, Norm],
        attention: Attention,
        rotary: Rotary | None,
        convolution: Convolution | None,
    ):
        self.config, self.names, self.reading, self.norms = config, names, reading, norms
        self.attention, self.rotary, self.convolution = attention, rotary, convolution
        own = f"{names.name}."
        self._linears = [linear for name, linear in reading.linears.items() if name.startswith(own)]
        self._norms = [norm for name, norm in norms.items() if name.startswith(own)]
        self._sites = [site for name, site in reading.sites.items() if name.startswith(own)]
        self._kept: tuple[np.ndarray, ...] = ()  # what the feed-forward's reverse needs

    def forward(self, x: np.ndarray, batch: Packed) -> np.ndarray:
        """The residual stream (tokens, hidden) → the same, a new array."""
        self.batch, first, names = batch, x, self.names
        if self.config.parallel:
            y = self._branch(names.attention_norm, names.attention_output_norm, x, self._attend)
            y += x
            y += self._branch(names.ffn_norm, names.ffn_output_norm, x, self._feed)
            x = y
        else:
            x = self._around(names.attention_norm, names.attention_output_norm, x, self._attend)
            x = self._around(names.ffn_norm, names.ffn_output_norm, x, self._feed)
        return x if self.convolution is None else self.convolution.forward(first, x, batch)

    def backward(self, g: np.ndarray) -> np.ndarray:
        """After a forward. Forgets what that kept."""
        first, names = None, self.names
        if self.convolution is not None:
            first, g = self.convolution.backward(g)
        if self.config.parallel:
            d = self._branch_back(names.ffn_norm, names.ffn_output_norm, g, self._feed_back)
            d += self._branch_back(names.attention_norm, names.attention_output_norm, g, self._attend_back)
            d += g
            g = d
        else:
            g = self._around_back(names.ffn_norm, names.ffn_output_norm, g, self._feed_back)
            g = self._around_back(names.attention_norm, names.attention_output_norm, g, self._attend_back)
        return g if first is None else g + first

    def forget(self) -> None:
        """Frees what the reverse needs, which another forward brings back, and the codes of weights."""
        for linear in self._linears:
            linear.forget()
        for norm in self._norms:
            norm.forget()
        for site in self._sites:
            if isinstance(site, Clipping):
                site.forget()
        if self.convolution is not None:
            self.convolution.forget()
        self.attention.forget()
        self._kept = ()

    def _branch(self, norm: str | None, output: str | None, x: np.ndarray, part: Pass) -> np.ndarray:
        """What a part adds to the residual stream x, a new array."""
        y = part(x if norm is None or not self.config.norm_first else self.norms[norm].forward(x))
        y = y if output is None else self.norms[output].forward(y)
        if self.config.residual_scale != 1:
            y *= np.asarray(self.config.residual_scale, y.dtype)
        return y

    def _branch_back(self, norm: str | None, output: str | None, g: np.ndarray, part_back: Pass) -> np.ndarray:
        """From the gradient of what the part added to that of x, a new array."""
        if self.config.residual_scale != 1:
            g = g * np.asarray(self.config.residual_scale, g.dtype)
        d = part_back(g if output is None else self.norms[output].backward(g))
        return d if norm is None or not self.config.norm_first else self.norms[norm].backward(d)

    def _around(self, norm: str | None, output: str | None, x: np.ndarray, part: Pass) -> np.ndarray:
        """The residual stream after a part, normed where norms stand in it."""
        y = self._branch(norm, output, x, part)
        y += x
        return y if self.config.ends_normed or norm is None else self.norms[norm].forward(y)

    def _around_back(self, norm: str | None, output: str | None, g: np.ndarray, part_back: Pass) -> np.ndarray:
        if not self.config.ends_normed and norm is not None:
            g = self.norms[norm].backward(g)
        d = self._branch_back(norm, output, g, part_back)
        d += g
        return d

    def _attend(self, x: np.ndarray) -> np.ndarray:
        names = self.names.attention
        q, k, v = self.reading.read(names.input, x)
        if self.config.qk_norm:
            q, k = (
                self._by_head(self.norms[f"{name}_norm"].forward, y) for name, y in ((names.query, q), (names.key, k))
            )
        rotary = self.rotary
        if rotary is not None:
            angles = rotary.tables(self.batch.positions, q.dtype)
            q, k = (rotary.forward(y, *angles) for y in (q, k))
        q_codes, k_codes, v_codes = (self.reading.code(site, y) for site, y in zip(names.projections, (q, k, v)))
        return self.reading.read(names.context, self.attention.forward(q_codes, k_codes, v_codes, self.batch))[0]

    def _attend_back(self, g: np.ndarray) -> np.ndarray:
        names = self.names.attention
        parts = self.attention.backward(self.reading.read_back(names.context, [g]))
        q, k, v = (self.reading.code_back(site, d) for site, d in zip(names.projections, parts))
        rotary = self.rotary
        if rotary is not None:
            angles = rotary.tables(self.batch.positions, q.dtype)
            q, k = (rotary.backward(y, *angles) for y in (q, k))
        if self.config.qk_norm:
            q, k = (
                self._by_head(self.norms[f"{name}_norm"].backward, y) for name, y in ((names.query, q), (names.key, k))
            )
        return self.reading.read_back(names.input, [q, k, v])

    def _by_head(self, norm: Pass, x: np.ndarray) -> np.ndarray:
        """x (tokens, heads * dim) through `norm`, of rows (tokens * heads, dim), or of all heads together."""
        width = x.shape[1] if self.config.qk_norm_joint else self.config.head_dim
        return norm(x.reshape(-1, width)).reshape(x.shape)

    def _feed(self, x: np.ndarray) -> np.ndarray:
        c, names = self.config, self.names.ffn
        parts = self.reading.read(names.input, x)
        if not c.gated:
            hidden, slope = activate(parts[0], c.activation)
            self._kept = (slope,)
            return self.reading.read(names.hidden, hidden)[0]
        gate, up = parts
        act, slope = activate(gate, c.activation)
        self._kept = act, slope, up
        return self.reading.read(names.hidden, hadamard(act * up, c.hadamard))[0]

    def _feed_back(self, g: np.ndarray) -> np.ndarray:
        names, kept = self.names.ffn, self._kept
        self._kept = ()
        d = self.reading.read_back(names.hidden, [g])
        if not self.config.gated:
            d *= kept[0]
            return self.reading.read_back(names.input, [d])
        act, slope, up = kept
        d = hadamard(d, self.config.hadamard)  # its own transpose
        act *= d
        d *= up
        d *= slope
        return self.reading.read_back(names.input, [d, act])
