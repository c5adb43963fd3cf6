"""`rank`: documents by how well they answer a query, by whatever head a model has for it. A part of Transformer of its
own; knows no layers."""

from collections.abc import Iterable

import numpy as np

from ..errors import CqError, UnsupportedError
from .inputs import as_items, is_iterable
from .late import Late


class Ranking(Late):
    """The method of Transformer that orders texts."""

    def rank(self, query: str, documents: Iterable, batch_size: int = 32) -> list[dict]:
        """The documents by how well they answer the query, the best first: [{"corpus_id": place in documents, "score":
        …}, …], as sentence-transformers' CrossEncoder gives them; of equals the first comes first.

        The scores are those of `classify` where the model is a sequence classifier with one label, over an encoder or
        a decoder, and of `similarity` where it is one of late interaction. batch_size: documents in one pass. Raises
        UnsupportedError for other models, CqError for what are no texts."""
        documents = as_items(documents)
        documents = list(documents) if is_iterable(documents) else [None]
        if not isinstance(query, str) or not all(isinstance(text, str) for text in documents):
            raise CqError("rank: need a query, a str, and a list of documents, each a str")
        scores = self._judged(query, documents, batch_size)
        order = np.argsort(-scores, kind="stable")
        return [{"corpus_id": int(i), "score": float(scores[i])} for i in order]

    def _judged(self, query: str, documents: list[str], batch_size: int) -> np.ndarray:
        """A score for each document, float32."""
        if self.config.multi_vector is not None:
            asked = [self.embed_tokens(query, query=True)]
            found: np.ndarray = self.similarity(asked, self.embed_tokens(documents, batch_size=batch_size))[0]
            return found
        if self.classifier is None or len(self.config.labels) != 1:
            raise UnsupportedError(
                f"rank: needs a cross-encoder, a sequence classifier with one label, or a model of late interaction; "
                f"this {self.config.family} model has {len(self.config.labels) or 'no'} labels"
            )
        if not documents:
            return np.empty(0, np.float32)
        scores: np.ndarray = self.classify([(query, text) for text in documents], batch_size)[:, 0]
        return scores
