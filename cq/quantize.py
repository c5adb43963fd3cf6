"""quantize(model, strategy) → a new model with its linear layers and word table in int8. The only file that swaps layers."""
import copy
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import numpy as np

from . import _core, affine
from .affine import check_finite
from .calibrate import calibrate
from .errors import CalibrationError, CqError, UnsupportedError
from .model import Transformer
from .model.activation import Fixed, Form, PerTensor, PerToken
from .model.linear import Linear, QuantizedLinear, pack_weight, quantize_bias, quantize_weight
from .qtensor import QTensor
from .strategies import QAT, Dynamic, Scheme, Static, WeightOnly
from .train import fit

_FIRST_RANGES = 500  # samples that ranges to be learned begin from
# Which observed place a layer reads, by the end of its name.
_READS = {"query": "input", "key": "input", "value": "input", "output": "context", "gate": "input", "up": "input",
          "down": "hidden"}


def quantize(model: Transformer, strategy: WeightOnly | Dynamic | Static | QAT, calibration: Iterable | None = None,
             progress: Callable[[int, int | None], None] | None = None) -> Transformer:
    """A new model under `strategy`; `model` (float32) is not changed, and float32 parts are shared with it.

    calibration: for Static, any iterable of samples: a text, a 1-D int array of token ids, or a list of either (a batch);
    100-500 typical ones. For QAT, the samples to train on, thousands where there are, and for its loss "pairs" tuples (text or
    ids, text or ids, score -1 … 1); the result is its target's, `strategy` included. progress(done, total or None) is called as
    samples pass, or steps.
    Raises CalibrationError (Static without samples), UnsupportedError (a layer that int8 cannot hold), CqError."""
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer (cq.load gives one), got {type(model).__name__}")
    if not isinstance(strategy, (WeightOnly, Dynamic, Static, QAT)):
        raise CqError(f"strategy: need cq.WeightOnly(), cq.Dynamic(), cq.Static() or cq.QAT(), got {strategy!r}")
    if model.strategy is not None:
        raise CqError(f"model: already quantized ({model.strategy.name}); quantize the float32 model instead")
    if progress is not None and not callable(progress):
        raise CqError(f"progress: need a function of (done, total), got {type(progress).__name__}")
    if isinstance(strategy, QAT):
        return _trained(model, strategy, calibration, progress)
    ranges = {}
    if isinstance(strategy, Static):
        if calibration is None:
            raise CalibrationError("calibration: Static fixes its scales from samples; give 100-500 typical texts or token "
                                   "arrays as calibration=, or use Dynamic(), which needs none")
        ranges = calibrate(model, calibration, strategy.observer, progress)
    elif calibration is not None:
        raise CqError(f"calibration: only Static uses samples; leave it out for {type(strategy).__name__}")
    return _convert(model, strategy, lambda site: _fixed(ranges[site], strategy.scheme))


def _trained(model: Transformer, strategy: QAT, samples: Iterable | None, progress: Callable | None) -> Transformer:
    """Trained behind fake quantization, then converted with the ranges and scales that it was trained with."""
    if samples is None:
        raise CalibrationError("calibration: QAT trains on samples; give typical texts or token arrays as calibration=")
    target, learned = strategy.target, None
    samples = samples if isinstance(samples, str) or not isinstance(samples, Iterable) else list(samples)
    if strategy.ranges == "learned":
        learned = {}
        if isinstance(target, Static):
            texts = [list(row[:2]) for row in samples] if strategy.loss == "pairs" else samples
            learned = {site: _params(observer, target.scheme)
                       for site, observer in calibrate(model, texts[:_FIRST_RANGES], target.observer).items()}
    network = fit(model, samples, strategy, learned, progress=progress and (lambda done, total, loss: progress(done, total)))
    scheme, ranges = target.scheme, network.ranges()
    return _convert(Transformer(model.config, network.weights(), model.tokenizer), target,
                    lambda site: Fixed(scheme.activation_dtype, scheme.activation_symmetric, *ranges[site]), network.scales())


def _params(observer, scheme: Scheme) -> tuple[float, int]:
    scale, zero_point = observer.qparams(scheme.activation_dtype, scheme.activation_symmetric)
    return float(scale), int(zero_point)


def _fixed(observer, scheme: Scheme) -> Fixed:
    return Fixed(scheme.activation_dtype, scheme.activation_symmetric, *_params(observer, scheme))


def _convert(model: Transformer, strategy, form_at: Callable[[str], Fixed], scales: dict | None = None) -> Transformer:
    """A copy of the model's structure with layers swapped; form_at(site) gives static forms, scales the learned scale and zero
    point of a layer's weight where its own extremes do not give them."""
    result = copy.copy(model)
    result.strategy = strategy
    result.embedding = copy.copy(model.embedding)
    result.blocks = []
    for block in model.blocks:
        block = copy.copy(block)
        block.attention, block.ffn = copy.copy(block.attention), copy.copy(block.ffn)
        result.blocks.append(block)
    for owner, attribute, name in list(result.linear_places()):
        setattr(owner, attribute, _swap(getattr(owner, attribute), name, strategy, form_at, (scales or {}).get(name)))
    if isinstance(strategy, Static):
        _join(result, form_at)
    _swap_word(result, strategy)
    return result


def _chosen(name: str, strategy) -> str:
    """Why the layer stays in float32, or "" where it does not."""
    for pattern in strategy.exclude:
        if fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    return "" if any(fnmatchcase(name, pattern) for pattern in strategy.include) else "matches no include pattern"


def _swap(layer: Linear, name: str, strategy, form_at: Callable[[str], Fixed], learned: tuple | None) -> Linear | QuantizedLinear:
    reason = _chosen(name, strategy)
    if reason:
        return Linear(layer.weight, layer.bias, layer.activation, reason)
    scheme = strategy.scheme
    weight = _packed(name, layer.weight, scheme, scheme.weight_granularity, learned)
    if isinstance(weight, str):
        return Linear(layer.weight, layer.bias, layer.activation, weight)
    if layer.bias is not None:
        check_finite(layer.bias, f"{name}.bias")
    form = _input_form(name, strategy, form_at)
    bias = quantize_bias(layer.bias, scheme.bias, form, weight)
    return QuantizedLinear(weight, bias, layer.activation, form, strategy.name)


def _packed(name: str, weight: np.ndarray, scheme: Scheme, granularity: str, learned: tuple | None = None) -> _core.Weight | str:
    """The weight in codes, by its own extremes or at learned (scale, zero point); or why int8 cannot hold it."""
    try:
        if learned is not None:
            scale, zero_point = learned
            spread = [p[:, None] if p.ndim else p for p in learned]
            codes = np.clip(affine.quantize(weight, *spread, "int8"), *affine.code_range("int8", scheme.weight_symmetric))
            return pack_weight(QTensor(codes, scale, zero_point, 0 if scale.ndim else None))
        group_size = scheme.group_size if granularity == "per_group" else None
        return pack_weight(quantize_weight(weight, scheme.weight_symmetric, granularity, group_size))
    except UnsupportedError as error:
        return str(error)
    except CqError as error:
        raise CqError(f"{name}: {error}") from None


def _input_form(name: str, strategy, form_at: Callable[[str], Fixed]) -> Form:
    scheme = strategy.scheme
    if isinstance(strategy, WeightOnly):
        return None
    if isinstance(strategy, Static):
        head, _, last = name.rpartition(".")
        return form_at("head.input" if name == "head" else f"{head}.{_READS[last]}")
    kind = PerToken if scheme.activation_granularity == "per_token" else PerTensor
    return kind(scheme.activation_dtype, scheme.activation_symmetric)


def _join(model: Transformer, form_at: Callable[[str], Fixed]) -> None:
    """Where neighbours are static, what flows between them is int8 too."""
    for block in model.blocks:
        attention, ffn = block.attention, block.ffn
        if all(layer.runs_in == "static" for layer in attention.readers()):
            attention.forms = tuple(form_at(f"{block.name}.attention.{part}") for part in ("query", "key", "value"))
        if ffn.gate is not None and ffn.gate.runs_in == ffn.up.runs_in == "static":
            ffn.forms = tuple(form_at(f"{block.name}.ffn.{part}") for part in ("gate", "up"))


def _swap_word(model: Transformer, strategy) -> None:
    """The word table: the tied head's own codes where they have one scale per word, else int8 with its own."""
    word, head = model.embedding, model.head
    tied = model.config.tied and head is not None
    reason = _chosen("embed.word", strategy) or (head.reason if tied else "")
    if not reason and tied and head.weight.group_size >= head.weight.k:
        word.word = head.weight
    elif not reason:
        granularity = "per_tensor" if strategy.scheme.weight_granularity == "per_tensor" else "per_channel"
        table = _packed("embed.word", word.word, strategy.scheme, granularity)
        if isinstance(table, str):
            reason = table
        else:
            word.word = table
    word.reason = reason
