"""Where a strategy puts fake quantization: which weights and which of the places between layers, as the conversion
will. Knows no arithmetic."""

from fnmatch import fnmatchcase

from ..model import Config
from ..model.sites import Graph
from ..strategies import Dynamic, Static, WeightOnly


class Recipe:
    """strategy: the one that the model will be converted by, or None for plain float32."""

    def __init__(self, config: Config, strategy: WeightOnly | Dynamic | Static | None):
        self.config, self.strategy, self.graph = config, strategy, Graph(config)

    def codes(self, layer: str) -> bool:
        """Whether the layer's weight becomes int8."""
        chosen = self.strategy
        return (
            chosen is not None
            and any(fnmatchcase(layer, pattern) for pattern in chosen.include)
            and not any(fnmatchcase(layer, pattern) for pattern in chosen.exclude)
        )

    def linears(self) -> list[str]:
        """Every linear layer that is trained, in the order of work: all but a classifier's head."""
        return [name for site in self.graph.trunk for name in site.readers]

    def readers(self, site: str) -> tuple[str, ...]:
        """The linear layers that read a site."""
        return self.graph.sites[site].readers if site in self.graph.sites else ()

    def sites(self) -> list[str]:
        """The sites where activations become codes: what a quantized layer reads, and what passes between them."""
        if self.strategy is None or isinstance(self.strategy, WeightOnly):
            return []
        found = []
        for block in self.graph.blocks:
            read = (block.attention.input, block.attention.context, block.ffn.input, block.ffn.hidden)
            found += [site for site in read if any(map(self.codes, self.readers(site)))]
            inside = block.attention.projections  # what these layers give, by their names
            if self.strategy.scheme.attention == "int8" and all(map(self.codes, inside)):
                found += inside
        return found + (["head.input"] if self.config.lm_head and self.codes("head") else [])

    @property
    def fixed(self) -> bool:
        """Whether activations have scales that rest."""
        return isinstance(self.strategy, Static)

    @property
    def word_granularity(self) -> str | None:
        """How the word table is coded: "head" where it shares a tied head's codes, None where it stays float32."""
        scheme, tied = self.strategy and self.strategy.scheme, self.config.tied and self.config.lm_head
        if not self.codes("embed.word") or (tied and not self.codes("head")):
            return None
        if tied and scheme.weight_granularity != "per_group":
            return "head"
        return "per_tensor" if scheme.weight_granularity == "per_tensor" else "per_channel"
