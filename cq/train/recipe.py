"""Where a strategy puts fake quantization: which weights and which of the places between layers, as the conversion will. Knows
no arithmetic."""
from fnmatch import fnmatchcase

from ..model import Config
from ..strategies import Dynamic, Static, WeightOnly

# The layers that read each place, by the ends of their names.
READERS = {"attention.input": ("attention.query", "attention.key", "attention.value"), "attention.context": ("attention.output",),
           "ffn.input": ("ffn.gate", "ffn.up"), "ffn.hidden": ("ffn.down",)}


class Recipe:
    """strategy: the one that the model will be converted by, or None for plain float32."""

    def __init__(self, config: Config, strategy: WeightOnly | Dynamic | Static | None):
        self.config, self.strategy = config, strategy

    def codes(self, layer: str) -> bool:
        """Whether the layer's weight becomes int8."""
        chosen = self.strategy
        return chosen is not None and any(fnmatchcase(layer, pattern) for pattern in chosen.include) \
            and not any(fnmatchcase(layer, pattern) for pattern in chosen.exclude)

    def linears(self) -> list[str]:
        """Every linear layer of the configuration, in the order of work."""
        parts = [*READERS["attention.input"], "attention.output", *(["ffn.gate"] if self.config.gated else []), "ffn.up",
                 "ffn.down"]
        names = [f"layers.{i}.{part}" for i in range(self.config.num_layers) for part in parts]
        return names + (["head"] if self.config.lm_head else [])

    def readers(self, site: str) -> list[str]:
        """The linear layers that read a place."""
        if site == "head.input":
            return ["head"] if self.config.lm_head else []
        layer, part = self._split(site)
        return [f"{layer}.{reader}" for reader in READERS[part] if self.config.gated or reader != "ffn.gate"]

    def sites(self) -> list[str]:
        """The places where activations become codes: what a quantized layer reads, and what passes between them."""
        if self.strategy is None or isinstance(self.strategy, WeightOnly):
            return []
        found = []
        for i in range(self.config.num_layers):
            found += [site for part in READERS if any(map(self.codes, self.readers(site := f"layers.{i}.{part}")))]
            inside = [f"layers.{i}.{part}" for part in READERS["attention.input"]]  # what these layers give, by their names
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

    @staticmethod
    def _split(site: str) -> tuple[str, str]:
        """"layers.3.ffn.input" → "layers.3", "ffn.input"."""
        layer, number, part = site.split(".", 2)
        return f"{layer}.{number}", part
