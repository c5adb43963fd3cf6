"""The graph of a configuration, described once: its linear layers in the order of work, the site that each one reads,
the norm before it, and what passes between layers. Holds names only: no weights and no arithmetic.

A site is a place where activations flow from one layer to the next. Calibration observes it, static codes have
parameters for it, and training rounds at it. Queries, keys and values are sites too, named like the layers that give
them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .config import Config

_PROJECTIONS, _OUTPUT = "query, key, value", "attention's output, residual, norm"
_UP, _DOWN = "feed-forward's up, activation", "feed-forward's down, residual, norm"
# The work between two sites of a block that are observed one after another, in words; "start" and "end" are those of a
# pass.
WORK = {
    ("start", "attention.input"): "embedding",
    ("start", "embed.input"): "embedding",
    ("embed.input", "attention.input"): "projection of embeddings",
    ("attention.input", "attention.query"): _PROJECTIONS,
    ("attention.query", "attention.key"): _PROJECTIONS,
    ("attention.key", "attention.value"): _PROJECTIONS,
    ("attention.value", "attention.context"): "attention: scores, softmax, mix",
    ("attention.context", "ffn.input"): _OUTPUT,
    ("ffn.input", "ffn.hidden"): _UP,
    ("ffn.hidden", "attention.input"): _DOWN,
    ("ffn.hidden", "head.input"): _DOWN,
    ("ffn.hidden", "transform.input"): _DOWN,
    ("transform.input", "head.input"): "the head's transform",
    ("head.input", "end"): "leaving",
    ("head.input", "classifier.input"): "the token that is classified",
    ("classifier.input", "classifier.hidden"): "the classifier's dense layer",
    ("classifier.input", "end"): "the classifier's scores",
    ("classifier.hidden", "end"): "the classifier's scores",
}


@dataclass(frozen=True)
class Site:
    """A site that linear layers read.

    name: such as "layers.0.ffn.input". readers: the layers. norm: the norm whose result it is, or None. source: the
    layer in whose outputs its channels are linear, one by one, or None. pattern: matches the readers' names, as
    strategies and mixes write them."""

    name: str
    readers: tuple[str, ...]
    norm: str | None
    source: str | None
    pattern: str


@dataclass(frozen=True)
class AttentionPart:
    """The names in a block's attention.

    input, context, sum: sites: before it, before the output projection, and of the residual stream after it. query,
    key, value: layers, and the sites of what they give. output: a layer. scores: what attention computes from queries
    and keys."""

    input: str
    query: str
    key: str
    value: str
    scores: str
    context: str
    output: str
    sum: str

    @property
    def projections(self) -> tuple[str, ...]:
        """The layers that read the input, which may be joined to one."""
        return self.query, self.key, self.value


@dataclass(frozen=True)
class FeedForwardPart:
    """The names in a block's feed-forward part.

    input, hidden, sum: sites: before it, before the down projection, and of the residual stream after it. gate (None
    where there is none), up, down: layers."""

    input: str
    gate: str | None
    up: str
    hidden: str
    down: str
    sum: str

    @property
    def projections(self) -> tuple[str, ...]:
        """The layers that read the input, which may be joined to one."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


@dataclass(frozen=True)
class BlockPart:
    """A block's names. attention_norm, ffn_norm: before their parts, or after the sum of part and residual stream
    (Config.norm_first); attention_output_norm, ffn_output_norm: of what the parts give. None where there is none."""

    name: str
    attention: AttentionPart
    ffn: FeedForwardPart
    attention_norm: str | None
    ffn_norm: str | None
    attention_output_norm: str | None
    ffn_output_norm: str | None

    @property
    def sites(self) -> tuple[str, ...]:
        """What its layers read, in the order of work."""
        return self.attention.input, self.attention.context, self.ffn.input, self.ffn.hidden


class Graph:
    """blocks: in the order of work. sites: name → Site, of all sites that layers read, in the order of work; trunk:
    those of them that training reaches: all but those of heads, of which only a causal language model's is among them.
    reads: linear layer → name of the site that it reads, in the order of work."""

    def __init__(self, config: Config):
        self.config = config
        self.blocks = tuple(_block(f"layers.{i}", config) for i in range(config.num_layers))
        self.trunk, heads = tuple(self._trunk()), tuple(self._heads())
        self.sites = {site.name: site for site in self.trunk + heads}
        self.reads = {layer: site.name for site in self.sites.values() for layer in site.readers}

    def readers(self, site: str) -> tuple[str, ...]:
        """The linear layers that read a site; none where it is not one that layers read."""
        return self.sites[site].readers if site in self.sites else ()

    @cached_property
    def residual_writers(self) -> tuple[str, ...]:
        """The layers whose outputs are added to the residual stream."""
        return tuple(layer for block in self.blocks for layer in (block.attention.output, block.ffn.down))

    def _trunk(self) -> Iterator[Site]:
        config = self.config
        first, norm = config.norm_first, "embed.norm" if config.starts_normed else None
        if config.embedding_width is not None:
            yield Site("embed.input", ("embed.project",), norm, None, "embed.project")
            norm = None
        for block in self.blocks:
            attention, ffn = block.attention, block.ffn
            yield Site(
                attention.input,
                attention.projections,
                block.attention_norm if first and block.attention_norm is not None else norm,
                None,
                f"{block.name}.attention.[qkv]*",
            )
            yield Site(attention.context, (attention.output,), None, attention.value, attention.output)
            yield Site(
                ffn.input,
                ffn.projections,
                block.ffn_norm if first else block.attention_norm,
                None,
                f"{block.name}.ffn.[gu]*",
            )
            yield Site(ffn.hidden, (ffn.down,), None, self._scaled_by(ffn), ffn.down)
            norm = self._after(block)
        if config.lm_head and config.causal:
            yield Site("head.input", ("head",), "final_norm" if config.ends_normed else norm, None, "head")

    def _scaled_by(self, ffn: "FeedForwardPart") -> str | None:
        """The layer whose outputs' scales are those of the hidden features: none where these are mixed."""
        return ffn.up if ffn.gate is not None and self.config.hadamard is None else None

    def _after(self, block: "BlockPart") -> str | None:
        """The norm that gives what a block's successor reads, where norms stand in the stream."""
        first = block is self.blocks[0] and self.config.convolution is not None
        return "convolution.norm" if first else block.ffn_norm

    def _heads(self) -> Iterator[Site]:
        """Those that read the trunk's result, which a norm gives."""
        norm = "final_norm" if self.config.ends_normed else self._after(self.blocks[-1])
        if self.config.head_transform is not None:
            yield Site("transform.input", ("transform.dense",), norm, None, "transform.dense")
            norm = "transform.norm"
        if self.config.masked_lm or self.config.token_head is not None:
            yield Site("head.input", ("head",), norm, None, "head")
        if self.config.classifier == "linear":
            yield Site("classifier.input", ("classifier.scores",), None, None, "classifier.scores")
        elif self.config.classifier is not None:
            yield Site("classifier.input", ("classifier.dense",), None, None, "classifier.dense")
            yield Site("classifier.hidden", ("classifier.scores",), None, None, "classifier.scores")


def _block(name: str, config: Config) -> BlockPart:
    attention = AttentionPart(**{part: f"{name}.attention.{part}" for part in AttentionPart.__dataclass_fields__})
    names = {part: f"{name}.ffn.{part}" for part in FeedForwardPart.__dataclass_fields__}
    ffn = FeedForwardPart(**names if config.gated else names | {"gate": None})
    norms, outputs = config.norm_first or not config.norm_outputs, config.norm_outputs
    return BlockPart(
        name,
        attention,
        ffn,
        f"{name}.attention_norm" if norms and not (config.embedding_norm and name == "layers.0") else None,
        f"{name}.ffn_norm" if norms else None,
        f"{name}.attention.output_norm" if outputs else None,
        f"{name}.ffn.output_norm" if outputs else None,
    )
