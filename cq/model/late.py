"""Late interaction (ColBERT, Khattab, Zaharia 2020): a vector for every token, and the similarity of texts by them. A
part of Transformer of its own; knows no layers."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from .. import _core
from ..errors import CqError, UnsupportedError
from .batch import Sequence
from .inputs import as_items, is_iterable, marked
from .pooling import normalized
from .texts import Texts, check_batch_size


class Late(Texts):
    """The methods of Transformer that work with a vector for every token."""

    if TYPE_CHECKING:  # of Transformer

        def logits(self, tokens: Iterable) -> list[np.ndarray]: ...

    def embed_tokens(
        self, texts: str | Iterable[str], *, query: bool = False, batch_size: int = 32
    ) -> list[np.ndarray] | np.ndarray:
        """A vector for every token, of a model of late interaction: projected, and of length 1 where the checkpoint
        says so, list of (vectors, features) float32; for a single text one array. As encode_document and encode_query
        of sentence-transformers' MultiVectorEncoder.

        texts: documents, or, where `query`, queries; the checkpoint's prompt is put before each. A document's vectors
        leave out tokens of the checkpoint's skiplist; a query is filled up with mask tokens where it says so.
        batch_size: texts in one pass. Raises UnsupportedError for another model, CqError for what are no texts."""
        said = self._said("embed_tokens")
        check_batch_size(batch_size)
        one, samples = isinstance(texts, str), as_items([texts] if isinstance(texts, str) else texts)
        samples = list(samples) if is_iterable(samples) else [None]
        if not all(isinstance(text, str) for text in samples):
            raise CqError("embed_tokens: need a text, or an iterable of texts")
        prompt = (self.config.prompts or {}).get("query" if query else "document", "")
        sequences = [self._marked(prompt + text, query) for text in samples]
        skipped = self._skipped() if not query or said["skips_queries"] else []
        results = []
        for start in range(0, len(sequences), batch_size):
            part = sequences[start : start + batch_size]
            for sequence, rows in zip(part, self.logits(part)):
                ids = sequence.ids if isinstance(sequence, Sequence) else sequence
                kept = rows[~np.isin(ids, skipped)]
                results.append(normalized(kept) if said["normalize"] else kept)
        return results[0] if one else results

    def similarity(self, queries: Any, documents: Any) -> np.ndarray:
        """MaxSim of each query with each document, float32 (queries, documents): for every vector of the query the
        largest product with one of the document's, summed, or averaged where the checkpoint says so.

        queries, documents: what `embed_tokens` gives, a list of arrays (vectors, features) or one such array. Raises
        UnsupportedError for a model that gives no vectors of tokens, CqError for arrays of other widths or without
        vectors."""
        said = self._said("similarity")
        asked, given = (_matrices(item, said["features"], name) for item, name in
                        ((queries, "queries"), (documents, "documents")))  # fmt: skip
        result = np.empty((len(asked), len(given)), np.float32)
        packed = [_core.pack_floats(document.T) for document in given]
        for i, query in enumerate(asked):
            for j, document in enumerate(packed):
                best = _core.linear(query, document, None).max(1)
                result[i, j] = math.fsum(best.tolist()) / (len(best) if said["mean"] else 1)
        return result

    def _said(self, what: str) -> dict[str, Any]:
        if self.config.multi_vector is None:
            raise UnsupportedError(
                f"{what}: this {self.config.family} model is none of late interaction; use embed, or forward for the "
                "states of its tokens"
            )
        return self.config.multi_vector

    def _marked(self, text: str, query: bool) -> np.ndarray | Sequence:
        """The text's tokens, cut to the length of its kind and filled up where it is a query."""
        said = self._said("embed_tokens")
        expansion = said["expansion"] if query else None
        most = said["query_length" if query else "document_length"]
        if expansion is not None:
            most = expansion["length"] if expansion["strategy"] == "fixed" else most and max(most, expansion["length"])
        most = min(most or self.config.max_length, self.config.max_positions)
        encoding = self._encoded(text, None, False, whole=True)
        encoding.truncate(
            max(0, most - self._tokenizer.num_special_tokens_to_add(False)), 0, self.config.truncation_side
        )
        encoding = self._tokenizer.post_process(encoding)
        ids, types = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
        more = 0 if expansion is None else max(0, expansion["length"] - len(ids))
        if not more or expansion is None:
            return marked(ids, types, None, self.config, "texts")
        ids = np.concatenate([ids, np.full(more, self._filler(expansion["token"]), np.int32)])
        types = np.concatenate([types, np.zeros(more, np.int32)])
        sequence = marked(ids, types, None, self.config, "texts")
        if expansion["attend"]:
            return sequence
        return Sequence(ids, sequence.types if isinstance(sequence, Sequence) else None, None, more)

    def _filler(self, token: str | None) -> int:
        names = self.config.special_tokens or {}
        for text in (token,) if token is not None else (names.get("mask_token", "[MASK]"), names.get("eos_token", "")):
            found = self._tokenizer.token_to_id(text)
            if found is not None:
                return int(found)
        raise CqError(f"embed_tokens: the tokenizer has no token to fill queries up with, {token or 'a mask'}")

    def _skipped(self) -> list[int]:
        """Ids of the tokens that documents' vectors leave out; unknown words would leave out all unknown ones."""
        found = (self._tokenizer.token_to_id(word) for word in self._said("embed_tokens")["skiplist"])
        return [i for i in found if i is not None]

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CqError("embed_tokens: the model was loaded without a tokenizer")
        return self.tokenizer


def _matrices(items: Any, features: int, name: str) -> list[np.ndarray]:
    listed = [items] if isinstance(items, np.ndarray) and items.ndim == 2 else list(items)
    for i, item in enumerate(listed):
        if not isinstance(item, np.ndarray) or item.shape != (len(item), features) or not len(item):
            got = item.shape if isinstance(item, np.ndarray) else type(item).__name__
            raise CqError(f"{name}[{i}]: need a float32 array (vectors, {features}), got {got}")
    return [np.ascontiguousarray(item, np.float32) for item in listed]
