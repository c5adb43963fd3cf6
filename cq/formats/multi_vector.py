"""What a checkpoint of late interaction says: the matrix that projects tokens, which tokens' vectors count, how queries
are filled up. From sentence-transformers, from PyLate, from Stanford's ColBERT. Must not know how a model computes."""

import string
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from ..errors import FormatError, UnsupportedError, brief
from ..model.deferred import read
from .keys import check_keys
from .tensors import read_tensors
from .untrusted import flag_of, read_json, read_json_if_any, size_of

_LENGTH = 32  # tokens of a query that is filled up, where nothing says it
_PREFIXES = {"query": "query_prefix", "document": "document_prefix"}
_SIMILARITIES = ("maxsim", "meanmaxsim", "cosine", "dot", None)  # the last three: written before there were others


class MultiVector(NamedTuple):
    """entries: of Config. projection: the folders of the modules that make up the matrix, in order. markers: texts
    before queries and documents that are one token each, where the tokenizer has them."""

    entries: dict[str, Any]
    projection: list[Path]
    markers: list[str]


def is_multi_vector(modules: list[tuple[str, Path]]) -> bool:
    """Whether modules of sentence-transformers, (kind, folder) each, give a vector for every token."""
    return len(modules) > 1 and modules[1][0] == "Dense"


def read_multi_vector(root: Path, modules: list[tuple[str, Path]], hidden_size: int) -> MultiVector:
    """Of a folder of sentence-transformers or PyLate. Raises FormatError, UnsupportedError."""
    file = root / "config_sentence_transformers.json"
    said, where = read_json_if_any(file), str(file)
    pylate = said.get("model_type") == "ColBERT"
    projection = [folder for kind, folder in modules[1:] if kind == "Dense"]
    rest = [kind for kind, _ in modules[1 + len(projection) :]]
    if rest not in ([], ["MultiVectorMask"], ["MultiVectorMask", "Normalize"], ["Normalize"]):
        raise UnsupportedError(f"{root / 'modules.json'}: modules {brief(rest)} after Dense are not implemented")
    knobs = said | _sentence_bert(modules[0][1])
    found = {
        "features": _features(projection, hidden_size),
        "normalize": pylate or "Normalize" in rest,
        "query_length": _length(knobs, "query_length", where),
        "document_length": _length(knobs, "document_length", where),
        "expansion": _expansion(knobs, pylate, where),
        "mean": _is_mean(said, where),
    }
    for kind, folder in modules[1 + len(projection) :]:
        check_keys(read_json_if_any(folder / "config.json"), f"{kind}/config.json", str(folder / "config.json"))
    mask = next((folder for kind, folder in modules if kind == "MultiVectorMask"), None)
    found |= _mask(read_json_if_any(mask / "config.json") if mask else said, pylate, str(mask or where))
    prompts = {key: text for key, text in (said.get("prompts") or {}).items() if isinstance(text, str)}
    markers = {name: said[key] for name, key in _PREFIXES.items() if isinstance(said.get(key), str)}
    prompts |= {name: text + prompts.get(name, "").removeprefix(text) for name, text in markers.items()}
    entries = _entries(found) | ({"prompts": prompts} if markers else {})
    return MultiVector(entries, projection, list(markers.values()))


def read_stanford(folder: Path, hidden_size: int) -> MultiVector:
    """Of a folder with Stanford's class, HF_ColBERT, whose matrix lies among the weights. Raises FormatError,
    UnsupportedError."""
    file = folder / "artifact.metadata"
    said, where = read_json_if_any(file), str(file)
    check_keys(said, "artifact.metadata", where)
    markers = {
        "query": f"{said.get('query_token_id') or '[unused0]'} ",
        "document": f"{said.get('doc_token_id') or '[unused1]'} ",
    }
    found = {
        "features": size_of(said, "dim", where, 128),
        "normalize": True,
        "query_length": None,
        "document_length": _length(said, "doc_maxlen", where),
        "expansion": {
            "strategy": "fixed",
            "attend": flag_of(said, "attend_to_mask_tokens", where),
            "token": None,
            "length": size_of(said, "query_maxlen", where, _LENGTH),
        },
        "mean": False,
        "skiplist": list(string.punctuation) if flag_of(said, "mask_punctuation", where, True) else [],
        "skips_queries": False,
    }
    return MultiVector(_entries(found) | {"prompts": markers}, [], list(markers.values()))


def read_projection(folders: list[Path]) -> dict[str, np.ndarray]:
    """The matrix that modules without activations come to, as the head's weight and bias. Raises FormatError."""
    matrix: np.ndarray | None = None
    offset: np.ndarray | None = None
    for folder in folders:
        tensors, where = read_tensors(folder / "model.safetensors")[0], str(folder)
        if "linear.weight" not in tensors or set(tensors) - {"linear.weight", "linear.bias", "residual.weight"}:
            raise FormatError(f"{where}: tensors {brief(sorted(tensors))}, wanted linear.weight and maybe linear.bias")
        weight = np.asarray(read(tensors["linear.weight"]), np.float64)
        if flag_of(read_json(folder / "config.json"), "use_residual", where):
            rest = read(tensors["residual.weight"]) if "residual.weight" in tensors else np.eye(len(weight))
            weight = weight + rest
        bias = np.asarray(read(tensors["linear.bias"]), np.float64) if "linear.bias" in tensors else None
        if offset is not None:
            offset = _product(offset[None], weight.T)[0]
        if bias is not None:
            offset = bias if offset is None else offset + bias
        matrix = weight if matrix is None else _product(weight, matrix)
    assert matrix is not None, "there is a module at least"
    found = {"head.weight": matrix.astype(np.float32)}
    return found if offset is None else found | {"head.bias": offset.astype(np.float32)}


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in float64, summed in one order on every CPU."""
    result = np.zeros((a.shape[0], b.shape[1]))
    for i in range(a.shape[1]):
        result += a[:, i : i + 1] * b[i]
    return result


def _features(folders: list[Path], width: int) -> int:
    for folder in folders:
        file = folder / "config.json"
        values, where = read_json(file), str(file)
        check_keys(values, "Dense/config.json", where)
        if size_of(values, "in_features", where) != width:
            raise FormatError(f"{where}: in_features {values['in_features']} is not {width}, what comes before it")
        name = values.get("activation_function", "torch.nn.modules.activation.Tanh")
        if not isinstance(name, str) or name.rpartition(".")[2] != "Identity":
            raise UnsupportedError(f"{where}: activation_function {brief(name)} of tokens is not implemented")
        for key in ("module_input_name", "module_output_name"):
            if values.get(key) not in (None, "token_embeddings"):
                raise UnsupportedError(f"{where}: {key} {brief(values[key])} is not implemented for tokens")
        width = size_of(values, "out_features", where)
    return width


def _sentence_bert(folder: Path) -> dict[str, Any]:
    values = read_json_if_any(folder / "sentence_bert_config.json")
    names = ("query_length", "document_length", "query_expansion")
    return {name: values[name] for name in names if name in values}


def _length(values: dict, key: str, where: str) -> int | None:
    return None if values.get(key) is None else size_of(values, key, where)


def _expansion(values: dict, pylate: bool, where: str) -> dict | None:
    """Config.multi_vector's expansion."""
    given = values.get("query_expansion")
    if given is None and "query_expansion" not in values and pylate:
        if values.get("do_query_expansion") is False:
            return None
        given = {
            "strategy": "fixed",
            "attend": flag_of(values, "attend_to_expansion_tokens", where),
            "length": size_of(values, "query_length", where, _LENGTH),
        }
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("strategy") not in ("fixed", "min"):
        raise UnsupportedError(f"{where}: query_expansion {brief(given)} is not implemented")
    token = given.get("token")
    if token is not None and not isinstance(token, str):
        raise FormatError(f"{where}: query_expansion: token must be a text, got {brief(token)}")
    return {
        "strategy": given["strategy"],
        "attend": flag_of(given, "attend", where),
        "token": token,
        "length": size_of(given, "length", where),
    }


def _mask(values: dict, pylate: bool, where: str) -> dict[str, Any]:
    words = values.get("skiplist_words")
    words = list(string.punctuation) if words is None and pylate else words or []
    tasks = values.get("skiplist_tasks") or ["document"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise FormatError(f"{where}: skiplist_words must be a list of texts, got {brief(words)}")
    if not isinstance(tasks, list) or "document" not in tasks or set(tasks) - {"query", "document"}:
        raise UnsupportedError(f"{where}: skiplist_tasks {brief(tasks)} is not implemented, only with 'document'")
    return {"skiplist": words, "skips_queries": "query" in tasks}


def _is_mean(said: dict, where: str) -> bool:
    name = said.get("similarity_fn_name")
    if name not in _SIMILARITIES:
        raise UnsupportedError(f"{where}: similarity_fn_name {brief(name)} of late interaction is not implemented")
    return bool(name == "meanmaxsim")


def _entries(found: dict[str, Any]) -> dict[str, Any]:
    return {"token_head": "vectors", "multi_vector": found, "pooling": None}


def mark(tokenizer: Tokenizer, markers: list[str]) -> None:
    """Makes each marker that the tokenizer knows, or its first word, one token, as models were trained to read it."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text in markers:
        for token in (text, *text.split(None, 1)[:1]):
            if token and (token in known or tokenizer.token_to_id(token) is not None):
                if tokenizer.encode(token, add_special_tokens=False).tokens != [token]:
                    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
                break
