"""The JSON form of a plan, which a checkpoint stores, and the checks of one that comes back. Features' own scales are
arrays beside it. Knows no files."""

import reprlib
from collections.abc import Callable

import numpy as np

from . import affine
from .errors import CqError
from .model.config import Config
from .model.forms import Columns, Fixed, Form, PerHead, PerTensor, PerToken, Smoothed, Stretched, has_one_scale
from .model.sites import Graph
from .plan import LayerPlan, Plan, QkvForms, WeightCoding, WordPlan
from .strategies import GRANULARITIES, Static, Strategy, from_dict, parts

# (name, dtype, shape) → the array of a checkpoint; raises where it is not there
Take = Callable[[str, str, tuple[int, ...]], np.ndarray]

# read wherever codes are
_PLAIN: dict[str, type[PerToken] | type[PerTensor] | type[Fixed]] = {
    form.kind: form for form in (PerToken, PerTensor, Fixed)
}
_FIELDS = {
    "per_token": ("dtype", "symmetric"),
    "per_tensor": ("dtype", "symmetric"),
    "per_head": ("dtype", "symmetric", "group_size"),
    "fixed": ("dtype", "symmetric", "scale", "zero_point"),
    "smoothed": ("dtype", "symmetric", "scale", "zero_point"),
    "stretched": ("dtype", "symmetric", "scale", "zero_point"),
}
# of a layer
_READS: dict[str, tuple[type, ...]] = {
    "weight-only": (type(None),),
    "dynamic": (PerToken, PerTensor),
    "static": (Fixed, Smoothed),
}
_PARTS = ("query", "key", "value")


def to_json(plan: Plan) -> tuple[dict, dict[str, np.ndarray]]:
    """(what json.dumps takes, name → array of features' own parameters), of a plan that conversion has settled."""
    writer = _Writer()
    layers: dict[str, dict[str, object]] = {}
    for name, layer in plan.layers.items():
        layers[name] = {"runs_in": layer.runs_in, "reason": layer.reason}
        if layer.weight is not None:
            form = writer.form(layer.input, name)
            layers[name] |= {"weight": _coding(layer.weight), "bias": layer.bias, "input": form}
    attention: dict[str, dict | None] = {}
    for block, forms in plan.attention.items():
        if isinstance(forms, PerHead):
            attention[block] = writer.form(forms, block)
        else:
            attention[block] = {
                name: writer.form(form, f"{block}.attention.values") for name, form in zip(_PARTS, forms)
            }
    word = {"weight": _coding(plan.word.weight), "with_head": plan.word.with_head, "reason": plan.word.reason}
    record = {
        "strategy": plan.strategy and plan.strategy.to_dict(),
        "layers": layers,
        "word": word,
        "attention": attention,
        "residual": [writer.form(form, "") for form in plan.residual],
    }
    return record, writer.arrays


def from_json(record: dict, config: Config, take: Take) -> Plan:
    """The inverse. take gives arrays by name, dtype and shape. Raises CqError, and what take raises, for a record that
    is no plan for a model of this configuration; a KeyError or TypeError where an entry is missing or of another
    type."""
    return _Reader(config, take).plan(record)


def _coding(coding: WeightCoding | None) -> dict | None:
    if coding is None:
        return None
    return {"symmetric": coding.symmetric, "granularity": coding.granularity, "group_size": coding.group_size}


class _Writer:
    """Forms as JSON. Those that layers share are equal, and name the arrays of the first."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._named: dict[Smoothed, str] = {}

    def form(self, form: Form | PerHead, owner: str) -> dict | None:
        if form is None:
            return None
        record = {"kind": form.kind} | {name: getattr(form, name) for name in _FIELDS[form.kind]}
        if isinstance(form, Smoothed):
            name = record["columns"] = self._named.setdefault(form, owner)
            self.arrays[f"{name}.columns.scale"] = form.columns.scale[0]
            self.arrays[f"{name}.columns.zero_point"] = form.columns.zero_point[0]
        return record


class _Reader:
    """Takes a record apart, checking each piece before it is used."""

    def __init__(self, config: Config, take: Take) -> None:
        self.config, self.graph, self.take = config, Graph(config), take
        self.columns: dict[str, Columns] = {}  # by the name that forms give: one object for all of them

    def plan(self, record: dict) -> Plan:
        strategy = None if record["strategy"] is None else from_dict(record["strategy"])
        kinds = {part.name for part in parts(strategy)}
        astray = set(record["layers"]) ^ set(self.graph.reads)
        if astray:
            raise CqError(f"layers missing or too many: {', '.join(sorted(astray)[:5])}")
        shapes = self.config.shapes()
        layers = {}
        for name in self.graph.reads:
            table = "embed.word" if name == "head" and self.config.tied else f"{name}.weight"
            layers[name] = self._layer(name, record["layers"][name], kinds, shapes[table][1])
        word = self._word(record["word"], layers, strategy)
        attention = {}
        for block in self.graph.blocks:
            if block.name in record["attention"]:
                kind = {layers[layer].runs_in for layer in block.attention.projections}
                attention[block.name] = self._attention(record["attention"][block.name], block.name, kind)
        if len(attention) != len(record["attention"]):
            raise CqError(f"attention: {_brief(record['attention'])} names blocks that the model does not have")
        return Plan(strategy, layers, word, attention, self._residual(record["residual"], strategy))

    def _layer(self, name: str, entry: dict, kinds: set[str], inputs: int) -> LayerPlan:
        runs_in, reason = entry["runs_in"], entry["reason"]
        if type(reason) is not str:
            raise CqError(f"{name}: the reason {_brief(reason)} is no text")
        if runs_in == "float32":
            return LayerPlan(runs_in, reason)
        form = self._form(entry["input"], name, inputs)
        if runs_in not in kinds or not isinstance(form, _READS[runs_in]):
            raise CqError(
                f"{name} runs in {_brief(runs_in)} on {_brief(form)}, the strategy has {', '.join(sorted(kinds))}"
            )
        weight, bias = self._weight(name, entry["weight"]), entry["bias"]
        if weight.granularity == "per_group" and form is not None:
            raise CqError(f"{name}: integer products with grouped scales")
        if bias not in GRANULARITIES["bias"]:
            raise CqError(f"{name}: bias: {_brief(bias)} is no kind of bias")
        return LayerPlan(runs_in, reason, weight, bias, form)

    def _weight(self, name: str, entry: dict) -> WeightCoding:
        symmetric, granularity, group_size = (entry[key] for key in ("symmetric", "granularity", "group_size"))
        if type(symmetric) is not bool or granularity not in GRANULARITIES["weight_granularity"]:
            raise CqError(f"{name}: {_brief(entry)} is no coding of a weight")
        if granularity != "per_group":
            return WeightCoding(symmetric, granularity)
        if type(group_size) is not int or not 4 <= group_size < 2**31 or group_size % 4:
            raise CqError(f"{name}: groups of {_brief(group_size)}")
        return WeightCoding(symmetric, granularity, group_size)

    def _word(self, entry: dict, layers: dict[str, LayerPlan], strategy: Strategy | None) -> WordPlan:
        weight, with_head, reason = (entry[key] for key in ("weight", "with_head", "reason"))
        tied = self.config.tied and self.config.lm_head
        if type(with_head) is not bool or type(reason) is not str or (with_head and not tied):
            raise CqError(f"word table: {_brief(entry)} does not fit the model")
        word = WordPlan(None if weight is None else self._weight("word table", weight), with_head, reason)
        if word.weight is not None and word.weight.granularity == "per_group":
            raise CqError("word table: it has one scale for a word, or one for all")
        if word.coded and (strategy is None or (tied and layers["head"].runs_in == "float32")):
            raise CqError("a word table in codes beside a float32 head, or without a strategy")
        head = layers["head"].weight if word.coded and word.weight is None else None
        if head is not None and 0 < (head.group_size or 0) < self.config.hidden_size:
            raise CqError("the head's codes cannot serve as word table")
        return word

    def _attention(self, entry: dict, name: str, kinds: set[str]) -> QkvForms | PerHead:
        """The forms of queries, keys and values of layers that run in `kinds`."""
        if kinds == {"dynamic"} and entry == {"kind": "per_head", "dtype": "int8", "symmetric": True} | {
            "group_size": self.config.head_dim
        }:
            return PerHead("int8", True, self.config.head_dim)
        widths = 0, 0, self.config.num_kv_heads * self.config.head_dim  # values may be smoothed
        query, key, value = (self._form(entry[part], f"{name}.attention", width) for part, width in zip(_PARTS, widths))
        if len(entry) == len(_PARTS) and kinds == {"static"}:
            if isinstance(query, Fixed) and isinstance(key, Fixed) and has_one_scale(value):
                return query, key, value
        raise CqError(f"{name}.attention: {_brief(entry)} is not what int8 layers hand on")

    def _residual(self, entry: list, strategy: Strategy | None) -> tuple[Fixed | None, ...]:
        forms = [self._form(values, "residual") for values in entry]
        fit = tuple(form for form in forms if form is None or isinstance(form, Fixed))
        if forms and (
            len(fit) != 2 * len(self.graph.blocks) + 1 or fit != tuple(forms) or not isinstance(strategy, Static)
        ):
            raise CqError(f"{_brief(entry)} is no residual stream of this model")
        return fit

    def _form(self, entry: dict | None, name: str, features: int = 0) -> Form:
        """features: of a site that may have parameters of each one's own; 0: none may."""
        if entry is None:
            return None
        kind, columns = entry["kind"], None
        form: PerToken | PerTensor | Fixed
        if kind in ("smoothed", "stretched") and features:
            columns = self._columns(entry["columns"], features)
            form = Fixed(*(entry[key] for key in _FIELDS["fixed"]))
        elif kind in _PLAIN:
            form = _PLAIN[kind](*(entry[key] for key in _FIELDS[kind]))
        else:
            raise CqError(f"{name}: {_brief(entry)} is no form of codes here")
        if not _is_sound(form) or len(entry) != len(_FIELDS[kind]) + 1 + (columns is not None):
            raise CqError(f"{name}: {_brief(entry)} is no form of codes")
        if columns is None or not isinstance(form, Fixed):
            return form
        apart = np.abs(columns.zero_point.astype(np.int64) - affine.middle(form.dtype)).max()
        if apart > (0 if form.symmetric or kind == "stretched" else affine.FARTHEST):
            raise CqError(f"{name}: zero points of {_brief(entry)} lie too far off")
        own = Stretched if kind == "stretched" else Smoothed
        return own(form.dtype, form.symmetric, form.scale, form.zero_point, columns)

    def _columns(self, name: str, features: int) -> Columns:
        if type(name) is not str:
            raise CqError(f"{_brief(name)} names no columns")
        if name not in self.columns:
            scale = self.take(f"{name}.columns.scale", "float32", (features,))
            zero_point = self.take(f"{name}.columns.zero_point", "int32", (features,))
            if scale.min() < affine.SMALLEST_SCALE:
                raise CqError(f"{name}.columns.scale: not positive")
            self.columns[name] = Columns(scale[None], zero_point[None])
        elif self.columns[name].scale.size != features:
            raise CqError(f"{name}.columns: {self.columns[name].scale.size} features, wanted {features}")
        return self.columns[name]


def _is_sound(form: PerToken | PerTensor | Fixed) -> bool:
    if form.dtype not in affine.RANGES or type(form.symmetric) is not bool or (form.symmetric and form.dtype != "int8"):
        return False
    if not isinstance(form, Fixed):
        return True
    low, high = (0, 0) if form.symmetric else affine.RANGES[form.dtype]
    return (
        type(form.scale) is float
        and float(affine.SMALLEST_SCALE) <= form.scale <= float(affine.LARGEST)
        and type(form.zero_point) is int
        and low <= form.zero_point <= high
    )


def _brief(value: object) -> str:
    return reprlib.repr(value)
