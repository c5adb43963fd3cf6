"""What a table of weights' names is made of. Holds no table."""

from dataclasses import dataclass

QKV: dict[str, tuple[str, ...]] = {"attention.qkv": ("attention.query", "attention.key", "attention.value")}  # fused


@dataclass(frozen=True)
class Family:
    """How Hugging Face or llama.cpp names a family. A table's keys are modules, whose leaves are weight and bias, or
    tensors."""

    prefix: str  # stands before every name in checkpoints that carry a head
    layer: str  # what stands before a layer's number
    outside: dict[str, str]  # name outside the layers → canonical
    inside: dict[str, str]  # name within a layer → canonical, within a layer
    ignored: tuple[str, ...]  # beginnings of names, after prefix or layer, that no hidden state depends on
    # canonical modules that always have a bias; None: the checkpoint's configuration says
    biases: tuple[str, ...] | None
    classifier: dict[str, str] | None = None  # names of a sequence classifier's head → canonical
    other_prefixes: tuple[str, ...] = ()  # as earlier classes wrote them; read in its place
    words: dict[str, str] | None = None  # the same of a masked language model's
    # module of the head that gives every token's labels; None: no head that reads every token is implemented
    labels: str | None = "classifier"
    # canonical module → those whose outputs it holds one after another, or, `by_head`, head by head
    fused: dict[str, tuple[str, ...]] | None = None
    by_head: bool = False
    bare: tuple[str, ...] = ()  # beginnings of names of heads that have no prefix, beside those of all families
    raised: bool = False  # 1 is added to weights of norms
    shared: bool = False  # a layer's number is that of a group of layers, which share its weights
    turned: bool = False  # matrices in layers are (in, out)
    # rows of queries and keys: what turns together side by side, not half a head apart
    paired: bool = False

    @property
    def plain(self) -> bool:
        """Whether a checkpoint holds each linear layer's weight by itself, as (out, in)."""
        return self.fused is None and not (self.turned or self.raised or self.shared)
