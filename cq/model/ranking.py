"""`rank`: documents by how well they answer a query, by whatever head a model has for it. A part of Transformer of its
own; knows no layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CqError, UnsupportedError
from .inputs import as_items, check_batch_size, in_parts, is_iterable
from .late_interaction import LateInteraction
from .pooling import activate

# As Qwen3-Reranker's model card asks; its checkpoint's chat template is that of the chat models.
_QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {prompt}\n'
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_QWEN3_PROMPT = "Given a web search query, retrieve relevant passages that answer the query"


class Ranking(LateInteraction):
    """The method of Transformer that orders texts."""

    if TYPE_CHECKING:  # of Transformer

        def head_scores(self, states: np.ndarray) -> np.ndarray: ...

    def rank(
        self,
        query: str,
        documents: Iterable,
        batch_size: int = 32,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[dict]:
        """The documents by how well they answer the query, the best first: [{"corpus_id": place in documents, "score":
        …}, …], as sentence-transformers' CrossEncoder gives them; of equals the first comes first.

        The scores are those of `classify` where the model is a sequence classifier with one label, over an encoder or
        a decoder; of `similarity` where it is one of late interaction; and where it is a language model that judges,
        the logit of "yes" less that of "no" after the pair, through config.pair_activation: one whose folder has a
        LogitScore module, which its chat template shows the pair, or a Qwen3 model (Qwen3-Reranker), which is asked in
        the words of its model card and scored by a sigmoid. batch_size: documents in one pass. prompt, prompt_name: of
        such a language model alone, what it is told of the task, as for `embed`; None: the checkpoint's, or the model
        card's. Raises UnsupportedError for other models, CqError for what are no texts."""
        documents = as_items(documents)
        documents = list(documents) if is_iterable(documents) else [None]
        if not isinstance(query, str) or not all(isinstance(text, str) for text in documents):
            raise CqError("rank: need a query, a str, and a list of documents, each a str")
        check_batch_size(batch_size)
        config = self.config
        if config.answers or config.lm_head and config.family == "qwen3":
            scores = self._answered(query, documents, batch_size, self._prompt(prompt, prompt_name))
        elif prompt is not None or prompt_name is not None:
            raise CqError("rank: only a language model that judges takes a prompt")
        else:
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
                "rank: needs a cross-encoder, a sequence classifier with one label, a model of late interaction, or a "
                f"language model that judges; this {self.config.family} model has {len(self.config.labels) or 'no'} "
                "labels"
            )
        if not documents:
            return np.empty(0, np.float32)
        scores: np.ndarray = self.classify([(query, text) for text in documents], batch_size)[:, 0]
        return scores

    def _answered(self, query: str, documents: list[str], batch_size: int, prompt: str) -> np.ndarray:
        """What a language model says of each document, float32."""
        answers, activation = self.config.answers, self.config.pair_activation
        if answers:
            told = [{"role": "system", "content": prompt}] if prompt else []
            pairs = ([{"role": "query", "content": query}, {"role": "document", "content": text}] for text in documents)
            model: Any = self  # a Transformer, whose template this is
            texts = [model.apply_chat_template([*told, *pair]) for pair in pairs]
        else:
            about = prompt or _QWEN3_PROMPT
            texts = [_QWEN3.format(prompt=about, query=query, document=text) for text in documents]
            ids = (self._tokenizer.token_to_id(word) for word in ("yes", "no"))
            answers, activation = tuple(i for i in ids if i is not None), "sigmoid"
            if len(answers) < 2:
                raise UnsupportedError("rank: the tokenizer has no tokens for yes and no, which the model would answer")
        tokens = [self.tokenize(text, special_tokens=False) for text in texts]
        found = [
            self.head_scores(np.stack([rows[-1] for rows in self.forward(part)]))[:, list(answers)]
            for part in in_parts(tokens, batch_size)
        ]
        logits = np.concatenate(found) if found else np.empty((0, len(answers)), np.float32)
        return activate(logits[:, 0] - logits[:, 1] if len(answers) > 1 else logits[:, 0], activation)
