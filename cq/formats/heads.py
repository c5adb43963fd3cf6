"""Which head a model has, by config.json and by the weights that are there. Must not know how heads compute."""

from dataclasses import replace
from typing import Any

from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from .name_tables import FAMILIES
from .sentence import pair_activation
from .untrusted import flag_of, size_of

_MAX_LABELS = 1 << 16  # that a number alone may ask for
_MASKED = ("ForMaskedLM", "ForPreTraining")
_EVERY_TOKEN = {"ForTokenClassification": "labels", "ForQuestionAnswering": "spans"}  # end of a class → token_head
# before a masked language model's head, whatever hidden_act says
_ALWAYS_GELU = ("roberta", "xlm-roberta", "camembert")


def architectures_of(values: dict, where: str) -> list[str]:
    """The classes that config.json names; none where it says nothing."""
    names = values.get("architectures")
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{where}: architectures must be a list of strings, got {brief(names)}")
    return names


def read_classifier(values: dict, activation: str, where: str) -> dict:
    """Entries of Config of a sequence classifier, where `architectures` says that the head is there. activation: as
    Config.classifier."""
    if not _is_any(values, ("ForSequenceClassification",), where):
        return {}
    labels, problem = _labels(values, where), values.get("problem_type")
    found: dict[str, Any] = {"labels": labels, "classifier": activation}
    if problem == "multi_label_classification":
        found["text_activation"] = "sigmoid"
    return found | {"pair_activation": pair_activation(_said_of_pairs(values, where), len(labels), where)}


def read_head(values: dict, entries: dict, where: str) -> dict:
    """Entries of Config of the other heads: those that read every token, and a decoder's sequence classifier. entries:
    what the family's reader found."""
    family = entries["family"]
    kind = next((kind for end, kind in _EVERY_TOKEN.items() if _is_any(values, (end,), where)), None)
    if kind is not None:
        if FAMILIES[family].labels is None:
            raise UnsupportedError(
                f"{where}: architectures {brief(values['architectures'])} is not implemented: of {family} models no "
                "head that reads every token is"
            )
        return {"token_head": kind} | ({"labels": _labels(values, where)} if kind == "labels" else {})
    if entries.get("causal"):
        return read_classifier(values, "linear", where)
    if FAMILIES[family].words is None or not _is_any(values, _MASKED, where):
        return {}
    transform = "gelu" if family in _ALWAYS_GELU else entries["activation"]
    return {"lm_head": True, "tied": flag_of(values, "tie_word_embeddings", where, True), "head_transform": transform}


def without_words(config: Config) -> Config:
    """The configuration without a masked language model's head."""
    return replace(config, lm_head=False, tied=False, head_transform=None) if config.masked_lm else config


def as_weighted(config: Config, weights: dict) -> Config:
    """The configuration of what `weights` (by canonical name) hold: many an encoder keeps the class it was trained as,
    and not the head that it was trained with."""
    return config if "transform.dense.weight" in weights else without_words(config)


def _is_any(values: dict, ends: tuple[str, ...], where: str) -> bool:
    return any(name.endswith(ends) for name in architectures_of(values, where))


def _labels(values: dict, where: str) -> tuple[str, ...]:
    """The labels' names. Without names they are called as transformers calls them."""
    named = values.get("id2label")
    if named is None:
        named = {i: f"LABEL_{i}" for i in range(min(size_of(values, "num_labels", where, 2), _MAX_LABELS))}
    numbers = {str(i) for i in range(len(named))} if isinstance(named, dict) else set()
    if (
        not numbers
        or {str(key) for key in named} != numbers
        or not all(isinstance(label, str) for label in named.values())
    ):
        raise FormatError(f"{where}: id2label must give each number from 0 on a name, got {brief(named)}")
    labels = {str(key): label for key, label in named.items()}
    return tuple(labels[str(i)] for i in range(len(labels)))


def _said_of_pairs(values: dict, where: str) -> Any:
    """The activation of a cross-encoder, as sentence-transformers of several times writes it; None: nothing says it."""
    more = values.get("sentence_transformers")
    if more is None:
        return values.get("sbert_ce_default_activation_function")
    if not isinstance(more, dict):
        raise FormatError(f"{where}: sentence_transformers must be an object, got {brief(more)}")
    return more.get("activation_fn")
