"""Late interaction (ColBERT, Khattab, Zaharia 2020): a vector for every token, and the similarity of texts by them. A
part of Transformer of its own; knows no layers."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..errors import CqError, UnsupportedError
from ..weights import pack_floats
from .batch import Sequence, ids_of
from .inputs import as_texts, check_batch_size, in_parts, is_iterable
from .pooling import normalized
from .texts import Texts


class LateInteraction(Texts):
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
        one, samples = as_texts(texts, "embed_tokens")
        prompt = (self.config.prompts or {}).get("query" if query else "document", "")
        sequences = [self._marked(prompt + text, query) for text in samples]
        skipped = self._skipped() if not query or said["skips_queries"] else []
        results = []
        for part in in_parts(sequences, batch_size):
            for sequence, rows in zip(part, self.logits(part)):
                kept = rows[~np.isin(ids_of(sequence), skipped)]
                results.append(normalized(kept) if said["normalize"] else kept)
        return results[0] if one else results

    def similarity(self, queries: Any, documents: Any) -> np.ndarray:
        """MaxSim of each query with each document, float32 (queries, documents): for every vector of the query the
        largest product with one of the document's, summed, or averaged where the checkpoint says so.

        queries, documents: what `embed_tokens` gives, a list of arrays (vectors, features) or one such array. Raises
        UnsupportedError for a model that gives no vectors of tokens, CqError for arrays of other widths or without
        vectors."""
        said = self._said("similarity")
        asked = _matrices(queries, said["features"], "queries")
        given = _matrices(documents, said["features"], "documents")
        result = np.empty((len(asked), len(given)), np.float32)
        packed = [pack_floats(document.T) for document in given]
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
        more = 0 if expansion is None else max(0, expansion["length"] - len(encoding))
        if not more or expansion is None:
            return self._sequence(encoding)
        encoding.pad(expansion["length"], pad_id=self._filler(expansion["token"]))
        sequence = self._sequence(encoding)
        if expansion["attend"]:
            return sequence
        return Sequence(ids_of(sequence), sequence.types if isinstance(sequence, Sequence) else None, None, more)

    def _filler(self, token: str | None) -> int:
        """The id of the token that queries are filled up with. token: as the checkpoint names it, or None: its mask, or
        what ends its texts."""
        found = self._special_id("mask_token", "[MASK]") if token is None else self._tokenizer.token_to_id(token)
        if found is None and token is None:
            found = self._special_id("eos_token")
        if found is None:
            raise CqError(f"embed_tokens: the tokenizer has no token to fill queries up with, {token or 'a mask'}")
        return found

    def _skipped(self) -> list[int]:
        """Ids of the tokens that documents' vectors leave out; unknown words would leave out all unknown ones."""
        found = (self._tokenizer.token_to_id(word) for word in self._said("embed_tokens")["skiplist"])
        return [i for i in found if i is not None]


def _matrices(items: Any, features: int, name: str) -> list[np.ndarray]:
    several = is_iterable(items) and not (isinstance(items, np.ndarray) and items.ndim <= 2)
    listed = list(items) if several else [items]
    for i, item in enumerate(listed):
        good = isinstance(item, np.ndarray) and item.ndim == 2 and item.dtype.kind in "fiu"
        if not good or item.shape[1] != features or not len(item):
            got = item.shape if isinstance(item, np.ndarray) else type(item).__name__
            raise CqError(f"{name}[{i}]: need a float32 array (vectors, {features}), got {got}")
    return [np.ascontiguousarray(item, np.float32) for item in listed]
