"""What people do with texts: tokenize, embed, classify. A part of Transformer of its own; knows no layers."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..door import own_errors
from ..errors import CqError, UnsupportedError
from .batch import Sequence
from .config import Config
from .inputs import as_items, check_batch_size, in_parts, is_iterable, is_pair, marked, sequences_of
from .pooling import activate, normalized, pool, softmax

if TYPE_CHECKING:
    from .batch import Batch
    from .classifier import Classifier
    from .pooling import Tail


class Texts:
    """The methods of Transformer that take texts. `tokenizer`: as it was given; `cutter`: the same, cutting texts to
    config.max_length, where the model pools, is an encoder or gives labels."""

    config: Config
    tokenizer: Tokenizer | None
    cutter: Tokenizer | None

    if TYPE_CHECKING:  # of Transformer
        classifier: Classifier | None
        tail: Tail

        def forward(self, tokens: Iterable) -> list[np.ndarray]: ...
        def batches(self, tokens: Iterable) -> Iterator[Batch]: ...
        def _classes(self, batch: Batch) -> np.ndarray: ...

    def take_tokenizer(self, tokenizer: Tokenizer | None) -> Self:
        """The model itself, with a tokenizer whose bounds are checked."""
        self.tokenizer, self.cutter = tokenizer, None
        if tokenizer is not None and (self.config.pooling or not self.config.causal or self.config.labels):
            self.cutter = Tokenizer.from_str(tokenizer.to_str())
            most = min(self.config.max_length, self.config.max_positions)
            self.cutter.enable_truncation(most, direction=self.config.truncation_side)
        return self

    def embed(
        self,
        texts_or_tokens: Iterable,
        batch_size: int = 32,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Sentence embeddings (n, dim) float32, pooled and normalized as the checkpoint's folder says; `encode` is the
        same with the arguments of sentence-transformers.

        texts_or_tokens: a list or column of texts (cut to config.max_length tokens), or tokens as `forward` takes; a
        single text gives one row. batch_size: sequences in one pass. prompt: put before each text; prompt_name: the
        same by a name of config.prompts; without either, config.default_prompt. Raises UnsupportedError where the model
        does not pool, CqError for a prompt before tokens, or a name that is none."""
        if self.config.pooling is None:
            raise UnsupportedError(f"embed: this {self.config.family} model says no pooling; use forward or logits")
        check_batch_size(batch_size)
        samples, first = self._prompted(texts_or_tokens, prompt, prompt_name)
        tokens = self.tokens_of(samples)
        parts = in_parts(tokens, batch_size)
        return self.pooled([pool(h, self.config.modes, first) for part in parts for h in self.forward(part)])

    def pooled(self, rows: list[np.ndarray]) -> np.ndarray:
        """Embeddings (n, dim) of pooled states: what follows pooling."""
        if not rows:
            return np.empty((0, self.config.embedding_size), np.float32)
        result = self.tail(np.stack(rows))
        result = normalized(result) if self.config.normalize else result
        return result[:, : self.config.embedding_size].copy()

    def _prompted(self, samples: Any, prompt: str | None, prompt_name: str | None) -> tuple[Any, int]:
        """The samples with the prompt before them; and how many of its tokens are not pooled."""
        said = prompt is not None or prompt_name is not None
        prompt, samples = self._prompt(prompt, prompt_name), as_items(samples)
        samples = [samples] if isinstance(samples, str) else samples
        if not prompt or not is_iterable(samples):
            return samples, 0
        samples = list(samples)
        if all(isinstance(text, str) for text in samples):
            first = 0 if self.config.include_prompt else self._prompt_tokens(prompt)
            return [prompt + text for text in samples], first
        if said:
            raise CqError("prompt: goes before texts, not before tokens; put its tokens before them")
        return samples, 0

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        prompts = self.config.prompts or {}
        if prompt is not None and not isinstance(prompt, str):
            raise CqError(f"prompt: need a text, got {type(prompt).__name__}")
        if prompt is not None:
            return prompt
        name = self.config.default_prompt if name is None else name
        if name is not None and (not isinstance(name, str) or name not in prompts):
            raise CqError(f"prompt_name: {name!r:.100} is none of {sorted(prompts)!r:.200}")
        return "" if name is None else prompts[name]

    def _prompt_tokens(self, prompt: str) -> int:
        """How many tokens a prompt has before the text, those that begin every text included."""
        ids = self._encoded(prompt, None).ids
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (bool(ids) and ids[-1] in special)

    def classify(
        self, texts_or_tokens: Iterable, batch_size: int = 32, *, function_to_apply: str | None = None
    ) -> np.ndarray:
        """Scores of each label, float32 (n, labels); config.labels names the columns.

        texts_or_tokens: as for `embed`, or pairs of texts [("query", "document"), …], which the tokenizer joins, the
        longer one cut first. batch_size: sequences in one pass. function_to_apply: what the head's scores go through:
        "none", "sigmoid", or "softmax" over the labels. None: sigmoid where several labels may hold at
        once (problem_type "multi_label_classification"), else nothing; of pairs config.pair_activation, as in
        sentence-transformers' CrossEncoder. Raises UnsupportedError where the model has no sequence classifier's
        head, CqError for another function."""
        if function_to_apply not in (None, "none", "sigmoid", "softmax"):
            raise CqError(f"function_to_apply: need 'none', 'sigmoid' or 'softmax', got {function_to_apply!r:.100}")
        if self.classifier is None:
            raise UnsupportedError(
                f"classify: this {self.config.family} model has no sequence classifier's head; use forward or embed"
            )
        check_batch_size(batch_size)
        samples, pairs = as_items(texts_or_tokens), []
        if isinstance(samples, tuple) and is_pair(samples):
            samples = [samples]
        if not isinstance(samples, np.ndarray) and is_iterable(samples):
            samples = list(samples)
            pairs = [is_pair(item) for item in samples]
        if any(pairs) and not all(pairs):
            raise CqError("classify: pairs and others together; give each kind in a call of its own")
        tokens = self.tokens_of(samples)
        found = [self._classes(batch) for part in in_parts(tokens, batch_size) for batch in self.batches(part)]
        scores = np.concatenate(found) if found else np.empty((0, len(self.config.labels)), np.float32)
        said = self.config.pair_activation if any(pairs) else self.config.text_activation
        return softmax(scores) if function_to_apply == "softmax" else activate(scores, function_to_apply or said)

    def tokenize(self, text: str, special_tokens: bool = True) -> np.ndarray:
        """Token ids of a text, int32 (len,); cut to config.max_length where the model pools or is an encoder.
        special_tokens: with those that the tokenizer puts around a text; a chat template's result has its own."""
        return np.array(self._encoded(text, None, special_tokens).ids, np.int32)

    def tokens_of(self, samples: Any) -> list[np.ndarray | Sequence]:
        """Texts, pairs of texts or ids, or one text → checked ids, one array for each, with the types that the
        tokenizer gives them where the model reads any."""
        samples = as_items(samples)
        if isinstance(samples, str):
            samples = [samples]
        if is_iterable(samples) and not hasattr(samples, "ndim"):
            samples = [self._tokens(s) if isinstance(s, str) or is_pair(s) else s for s in samples]
        return sequences_of(samples, self.config)

    def _tokens(self, item: str | tuple[str, str]) -> np.ndarray | Sequence:
        first, second = (item, None) if isinstance(item, str) else item
        return self._sequence(self._encoded(first, second))

    def _sequence(self, encoding: Encoding) -> np.ndarray | Sequence:
        """Its ids, with the types that the tokenizer gives them where the model reads any."""
        return marked(np.array(encoding.ids, np.int32), encoding.type_ids, None, self.config, "texts")

    def _encoded(self, text: str, second: str | None, special_tokens: bool = True, whole: bool = False) -> Encoding:
        """whole: not cut."""
        tokenizer = self._tokenizer
        if self.cutter is not None and not whole:
            tokenizer = self.cutter
        for part in (text,) if second is None else (text, second):
            if not isinstance(part, str):
                raise CqError(f"text: need a str, got {type(part).__name__}")
            if not part.isascii():
                try:
                    part.encode()
                except UnicodeEncodeError as error:
                    raise CqError(
                        f"text: character {error.start} is half of a surrogate pair, not a character"
                    ) from None
        if self.config.strip:
            text, second = text.strip(), second and second.strip()
        with own_errors("text: the tokenizer fails"):
            return tokenizer.encode(text, second, add_special_tokens=special_tokens)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CqError(
                "tokenize: the model was loaded without a tokenizer; give arrays of token ids, or put its "
                "tokenizer.json beside the weights. A SentencePiece file alone, such as spm.model, is not read; "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers makes the other of it"
            )
        return self.tokenizer

    def _special_token(self, name: str, *usual: str) -> str | None:
        """A special token by its name; where no file says it, the first of the usual ones that the tokenizer has."""
        said = (self.config.special_tokens or {}).get(name)
        there = (text for text in usual if self._tokenizer.token_to_id(text) is not None)
        return next(there, None) if said is None else said

    def _special_id(self, name: str, *usual: str) -> int | None:
        """The id of `_special_token`; None where there is no such token."""
        text = self._special_token(name, *usual)
        return None if text is None else self._tokenizer.token_to_id(text)
