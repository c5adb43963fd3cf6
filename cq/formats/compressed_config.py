"""`quantization_config` of config.json as compressed-tensors writes it: which layers are in which codes. Must not know
tensors."""

from dataclasses import dataclass

from ..errors import FormatError, UnsupportedError, brief
from ..model.forms import PerTensor, PerToken
from ..plan import WeightCoding
from .keys import check_keys, rule_of
from .patterns import Matcher
from .untrusted import flag_of

METHOD = "compressed-tensors"
PACKED, PLAIN, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
_FORMATS = (PLAIN, "naive-quantized", PACKED)
_GRANULARITIES = {"tensor": "per_tensor", "channel": "per_channel", "group": "per_group"}
_MOST = 4096  # targets and ignored names


@dataclass(frozen=True)
class Group:
    """How the layers of one of config_groups are coded. packed: four codes lie in an int32. runs_in: as in LayerPlan;
    form: of a dynamic layer's activations; symmetric: whether activations are."""

    coding: WeightCoding
    packed: bool
    runs_in: str
    form: PerToken | PerTensor | None
    symmetric: bool


class Quantization:
    """Which layers are in which codes."""

    def __init__(self, targets: dict[str, Group], ignore: list[str], where: str):
        self.where, self._ignore = where, ignore
        # a name counts before a pattern, and both before a class
        self._targets = {target: targets[target] for target in sorted(targets, key=lambda t: ("re:" in t, t))}
        self._matches = Matcher(where)

    def group_of(self, module: str, kind: str) -> Group | str:
        """The group of a module, by its name in the file and its class ("Linear" or "Embedding"); or why it stays in
        float32. Raises UnsupportedError for patterns that are not read."""
        named = next((group for target, group in self._targets.items() if self._is(module, target)), None)
        group = named or self._targets.get(kind)
        if group is None:
            return "no target of the checkpoint's quantization_config matches it"
        ignored = next((one for one in self._ignore if one == kind or self._is(module, one)), None)
        return group if ignored is None else f"left in float32 by the checkpoint: ignore {brief(ignored)}"

    def _is(self, module: str, target: str) -> bool:
        return self._matches(target[3:], module) if target.startswith("re:") else target == module


def read_quantization(values: object, file: str) -> Quantization:
    """The entry `quantization_config` of `file`. Raises FormatError, UnsupportedError naming file, key and value."""
    where = f"{file}: quantization_config"
    if not isinstance(values, dict):
        raise FormatError(f"{where} must be an object, got {brief(values)}")
    if values.get("quant_method") != METHOD:
        raise UnsupportedError(
            f"{where}: quant_method {brief(values.get('quant_method'))} is not implemented, only {METHOD!r}"
        )
    check_keys(values, "quantization_config", where)
    sparsity = values.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(f"{where}: sparsity_config {brief(sparsity)} is not implemented, only 'dense'")
    if values.get("quantization_status") != "compressed":
        raise UnsupportedError(
            f"{where}: quantization_status {brief(values.get('quantization_status'))} is not implemented, only "
            "'compressed', with which weights are in codes"
        )
    groups, targets = values.get("config_groups"), dict[str, Group]()
    if not isinstance(groups, dict) or not groups:
        raise FormatError(f"{where}: config_groups must map names to groups, got {brief(groups)}")
    for name, entry in groups.items():
        at = f"{where}.config_groups.{name if name.isidentifier() else brief(name)}"
        targets |= dict.fromkeys(_names(entry, "targets", at), _group(entry, values.get("format"), at))
    ignore = _names(values, "ignore", where) if values.get("ignore") is not None else []
    if len(targets) + len(ignore) > _MOST:
        raise UnsupportedError(f"{where}: {len(targets)} targets and {len(ignore)} ignored names; at most {_MOST}")
    return Quantization(targets, ignore, where)


def _names(entry: object, key: str, where: str) -> list[str]:
    if not isinstance(entry, dict):
        raise UnsupportedError(f"{where}: {brief(entry)} is not implemented, only a group with weights and targets")
    names = entry.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{where}: {key} must be a list of names, got {brief(names)}")
    return names


def _group(entry: dict, usual: object, where: str) -> Group:
    """usual: the format of groups that say none."""
    _check_known(entry, "config_groups", where)
    kind = usual if entry.get("format") is None else entry["format"]
    if kind not in _FORMATS:
        raise UnsupportedError(f"{where}: format {brief(kind)} is not implemented, only {', '.join(_FORMATS)}")
    coding = _coding(_arguments(entry.get("weights"), f"{where}.weights"), f"{where}.weights")
    if entry.get("input_activations") is None:
        return Group(coding, kind == PACKED, "weight-only", None, False)
    at = f"{where}.input_activations"
    values = _arguments(entry["input_activations"], at)
    strategy, dynamic = values.get("strategy", "tensor"), flag_of(values, "dynamic", at)
    symmetric = flag_of(values, "symmetric", at, True)
    if strategy not in (("token", "tensor") if dynamic else ("tensor",)):
        raise UnsupportedError(
            f"{at}: strategy {brief(strategy)} with dynamic {dynamic} is not implemented, only 'token', which is "
            "dynamic, and 'tensor'"
        )
    if coding.granularity == "per_group":
        raise UnsupportedError(
            f"{where}.weights: strategy 'group' is not implemented beside input_activations in codes, only without"
        )
    if not dynamic:
        return Group(coding, kind == PACKED, "static", None, symmetric)
    form = (PerToken if strategy == "token" else PerTensor)("int8", symmetric)
    return Group(coding, kind == PACKED, "dynamic", form, symmetric)


def _arguments(values: object, where: str) -> dict:
    """Arguments of a quantization with the keys that count; words in small letters, what is null left out."""
    if not isinstance(values, dict):
        raise UnsupportedError(f"{where} {brief(values)} is not implemented, only an object")
    words = ("type", "strategy", "actorder", "dynamic")
    values = {k: v.lower() if k in words and isinstance(v, str) else v for k, v in values.items() if v is not None}
    _check_known(values, "weights and input_activations", where)
    if "strategy" not in values and "group_size" in values:
        values["strategy"] = "channel" if values["group_size"] == -1 else "group"
    return values


def _check_known(values: dict, table: str, where: str) -> None:
    unknown = [key for key in values if rule_of(table, key) is None]
    if unknown:
        raise UnsupportedError(f"{where}: {brief(unknown[0])} {brief(values[unknown[0]])} is not implemented")
    check_keys(values, table, where)


def _coding(values: dict, where: str) -> WeightCoding:
    strategy, size = values.get("strategy", "tensor"), values.get("group_size")
    symmetric = flag_of(values, "symmetric", where, True)
    if flag_of(values, "dynamic", where):
        raise UnsupportedError(f"{where}: dynamic True is not implemented, only False")
    if not isinstance(strategy, str) or strategy not in _GRANULARITIES:
        raise UnsupportedError(
            f"{where}: strategy {brief(strategy)} is not implemented, only {', '.join(_GRANULARITIES)}"
        )
    if strategy != "group":
        return WeightCoding(symmetric, _GRANULARITIES[strategy])
    if type(size) is not int or not 4 <= size < 2**31 or size % 4:
        raise UnsupportedError(f"{where}: group_size {brief(size)} is not implemented, only multiples of 4")
    return WeightCoding(symmetric, "per_group", size)
