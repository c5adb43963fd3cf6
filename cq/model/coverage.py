"""What share of a model runs in int8, part by part, and why the rest does not. Reads a model's layers; runs nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .attention import MAX_KEYS
from .block import Block
from .forms import Fixed, PerHead, Smoothed
from .linear import QuantizedLinear, may_join
from .overflow import attention_reach, headroom, layer_reach

if TYPE_CHECKING:
    from .transformer import Transformer

INTEGER = ("dynamic", "static")  # products in int8; weight-only multiplies in float32


class Placement(NamedTuple):
    """Where a part of the model runs. shape (inputs, outputs), or None for work without a matrix; reason: why it is not
    int8; multiply_adds: of one sequence of Coverage.tokens tokens."""

    name: str
    runs_in: str
    shape: tuple[int, int] | None
    nbytes: int
    reason: str
    multiply_adds: int = 0


@dataclass(frozen=True)
class Coverage:
    """Every part's Placement, in the order of work; iterates over them. tokens: the length of the one sequence whose
    multiply-adds are counted: linear layers, logits of every position, attention's two products, of which a causal
    model needs those up to the diagonal, and a layer with a window those within it, products with relative positions,
    and a convolution. nbytes: of the whole model; int8_nbytes: of weights in codes, with their scales and sums. What
    two parts share counts once in both."""

    rows: tuple[Placement, ...]
    tokens: int
    nbytes: int
    int8_nbytes: int

    def __iter__(self) -> Iterator[Placement]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def share_of_multiply_adds(self) -> float:
        """In int8, 0 ... 1; those with int8 weights in float32 (weight-only) do not count."""
        return sum(row.multiply_adds for row in self.rows if row.runs_in in INTEGER) / self.multiply_adds

    @property
    def share_of_bytes(self) -> float:
        """In int8, 0 ... 1."""
        return self.int8_nbytes / self.nbytes

    @property
    def fallbacks(self) -> tuple[Placement, ...]:
        """What stays in float32, each with its reason; empty for a float32 model."""
        return tuple(row for row in self.rows if row.runs_in == "float32" and row.reason)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"{row.name}: {row.runs_in}: {row.reason}" for row in self.fallbacks)])

    @property
    def summary(self) -> str:
        """Both shares, in a sentence."""
        return (
            f"int8: {self.share_of_multiply_adds:.2%} of {self.multiply_adds:,} multiply-adds (one sequence of "
            f"{self.tokens:,} tokens), {self.share_of_bytes:.2%} of {self.nbytes:,} bytes"
        )


def coverage_of(model: "Transformer", tokens: int) -> Coverage:
    """See Transformer.coverage."""
    word, quantized = model.embedding, model.strategy is not None
    coded = list(word.word_arrays()) if word.runs_in != "float32" else []
    rows = [Placement("embed.word", word.runs_in, word.shape, _nbytes(word.word_arrays()), word.reason)]
    for name, table in model.tables().items():
        meets = name.startswith("layers.")
        reason = ("meets queries or keys in float32" if meets else "looked up and added, never multiplied") * quantized
        rows.append(Placement(name, "float32", table.shape[::-1], table.nbytes, reason))
    for name, layer in model.linears():
        inputs, outputs = layer.shape
        times = 1 if name.startswith("classifier.") else tokens  # which reads one token of a sequence
        rows.append(
            Placement(name, layer.runs_in, layer.shape, _nbytes(layer.arrays()), layer.reason, times * inputs * outputs)
        )
        coded += layer.arrays() if isinstance(layer, QuantizedLinear) else []
    if model.convolution is not None:
        layer, reason = model.convolution.product, "a convolution is float32" * quantized
        work = tokens * layer.shape[0] * layer.shape[1]
        rows.append(Placement("convolution", "float32", layer.shape, _nbytes(layer.arrays()), reason, work))
    norms = [array for _, norm in model.norms() for array in norm.arrays()]
    rows.append(
        Placement("norms", "float32", None, _nbytes(norms), "a norm's own numbers, a few per channel" * quantized)
    )
    for block in model.blocks:
        rows += _weightless(block, tokens, quantized)
    if quantized:
        stream = all(block.streams[0] is not None for block in model.blocks)
        rows.append(
            Placement(
                "residual stream",
                "static" if stream else "float32",
                None,
                0,
                "" if stream else "sums over layers keep float32; norms hand codes to the next layer",
            )
        )
    return Coverage(tuple(rows), tokens, model.nbytes, sum({id(a): a.nbytes for a in coded}.values()))


def _weightless(block: Block, tokens: int, quantized: bool) -> Iterator[Placement]:
    """Attention's products, and what passes through float32 between int8 layers."""
    attention, ffn = block.attention, block.ffn
    pairs = attention.pairs(tokens)
    kind, reason = "float32", "q, k and v are not all int8, or float32 was chosen" * quantized
    if attention.forms is not None:
        kind = "dynamic" if isinstance(attention.forms, PerHead) else "static"
        steps = " and ".join(
            ["normed"] * (attention.query_norm is not None) + ["rotated"] * (attention.rotary is not None)
        )
        reason = f"q and k are {steps} in float32 before they become int8" if steps else ""
    yield Placement(
        f"{block.name}.attention.scores", kind, None, 0, reason, 2 * attention.heads * attention.dim * pairs
    )
    if attention.relative is not None:
        reason = "the positions' own keys and queries are float32" * quantized
        work = attention.heads * attention.dim * attention.relative.products(tokens)
        yield Placement(f"{block.name}.attention.positions", "float32", None, 0, reason, work)
    if not quantized:
        return
    if ffn.gate is not None and not (ffn.gate.runs_in in INTEGER and may_join((ffn.gate, ffn.up))):
        yield Placement(f"{block.name}.ffn.gating", "float32", None, 0, "gate and up are not one product in int8")
    elif isinstance(ffn.down.input_form, (Fixed, Smoothed)):
        yield Placement(f"{block.name}.ffn.hidden", "static", None, 0, "")


def headroom_of(model: "Transformer") -> dict[str, float]:
    """See Transformer.headroom."""
    longest = min(model.config.max_positions, MAX_KEYS)
    found = {
        name: headroom(layer_reach(layer.weight, layer.input_form, layer.bias_codes))
        for name, layer in model.linears()
        if isinstance(layer, QuantizedLinear) and layer.input_form is not None
    }
    for block in model.blocks:
        if block.attention.forms is not None:
            reach = attention_reach(block.attention.forms, block.attention.dim, longest)
            found[f"{block.name}.attention.scores"] = headroom(reach)
    return found


def _nbytes(arrays: list) -> int:
    return sum(array.nbytes for array in arrays)
