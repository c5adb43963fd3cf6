"""A Hugging Face folder as a model; where its config.json has a quantization_config of compressed-tensors, with the
codes and scales of its files. Must not know how a model computes."""

import os
from dataclasses import replace

from ..convert import convert
from ..errors import CqError, FormatError, UnsupportedError
from ..model import Config, Transformer
from ..model.forms import Fixed, Form, PerTensor
from ..model.sites import Graph
from ..plan import LayerPlan, Plan, WordPlan
from ..strategies import Dynamic, Mixed, Scheme, Single, Static, Strategy, WeightOnly
from .compressed_codes import FileCodes
from .compressed_config import Group, Quantization
from .huggingface import assembled, read_coded_settings, read_weights
from .untrusted import as_path


def load_folder(path: str | os.PathLike) -> Transformer:
    """The model in a Hugging Face folder, float32 or in codes. Attention computes in float32 there, and what symmetric
    activations become ends at -128 where its scale is fixed. Raises FileNotFoundError, FormatError,
    UnsupportedError."""
    settings = read_coded_settings(as_path(path))
    tensors, where = read_weights(settings.folder)
    if settings.quantization is None:
        config, weights, tokenizer = assembled(settings, tensors, where)
        return Transformer(config, weights).take_tokenizer(tokenizer)
    codes = FileCodes(tensors, settings.config, where)
    config, weights, tokenizer = assembled(settings, codes.floats, where)
    model, plan = Transformer(config, weights).take_tokenizer(tokenizer), _plan(config, settings.quantization, codes)
    if plan.strategy is not None:
        try:
            model = convert(model, plan, codes)
        except FormatError:
            raise
        except CqError as error:
            raise type(error)(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    codes.check_all_taken()
    return model


def _plan(config: Config, quantization: Quantization, codes: FileCodes) -> Plan:
    """What the configuration says of each layer, which the file must hold in that form."""
    layers, choices = {}, dict[str, Single | None]()
    for name in Graph(config).reads:
        group = quantization.group_of(codes.module(f"{name}.weight"), "Linear")
        codes.check_form(f"{name}.weight", group)
        if isinstance(group, str):
            layers[name], choices[name] = LayerPlan("float32", group), None
        else:
            form = _form(name, group, codes)
            layers[name] = LayerPlan(group.runs_in, "", group.coding, "float32", form)
            choices[name] = _strategy_of(group)
    word = _word(config, quantization, codes)
    return Plan(_strategy(choices, word), layers, word)


def _word(config: Config, quantization: Quantization, codes: FileCodes) -> WordPlan:
    module, tied = codes.module("embed.word"), config.tied and config.lm_head
    group = quantization.group_of(module, "Embedding")
    codes.check_form("embed.word", group)
    if isinstance(group, str):
        return WordPlan(None, tied, group)
    if tied or group.runs_in != "weight-only" or group.coding.group_size:
        raise UnsupportedError(
            f"{quantization.where}: codes of the word table {module} are implemented where no head is tied to it, "
            "without groups and without input_activations"
        )
    return WordPlan(group.coding)


def _form(name: str, group: Group, codes: FileCodes) -> Form:
    if group.runs_in != "static":
        return group.form
    return Fixed("int8", False, *codes.input_parameters(name, group.symmetric))


def _strategy_of(group: Group) -> Single:
    """The choice that a group stands for."""
    coding = group.coding
    scheme = Scheme(
        weight_symmetric=coding.symmetric,
        weight_granularity=coding.granularity,
        group_size=coding.group_size,
        bias="float32",
        attention="float32",
    )
    if group.runs_in == "weight-only":
        return WeightOnly(scheme)
    granularity = "per_tensor" if isinstance(group.form, PerTensor) else "per_token"
    scheme = replace(
        scheme, activation_dtype="int8", activation_symmetric=group.symmetric, activation_granularity=granularity
    )
    return Dynamic(scheme) if group.runs_in == "dynamic" else Static(scheme, smooth=False, correct_bias=False)


def _strategy(choices: dict[str, Single | None], word: WordPlan) -> Strategy | None:
    """One for all that is in codes, or a mix. None: nothing is. The word table goes with the layers where there are
    any."""
    found = dict.fromkeys(choice for choice in choices.values() if choice is not None)
    if not found and word.weight is not None:
        found = {_strategy_of(Group(word.weight, False, "weight-only", None, False)): None}
    if len(found) > 1:
        whole = {"embed.word": WeightOnly() if word.coded else None} | choices
        return Mixed(tuple(whole.items()))
    out = tuple(name for name, choice in choices.items() if choice is None)
    return next((replace(one, exclude=out + ("embed.word",) * (not word.coded)) for one in found), None)
