"""What people do with heads that read every token: find entities, answer questions out of a text, fill masks. A part of
Transformer of its own; knows no layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..errors import CqError, UnsupportedError
from .batch import Sequence
from .entities import AGGREGATIONS, Piece, found
from .inputs import as_items, is_iterable, marked
from .pooling import softmax
from .spans import best_spans
from .texts import Texts, check_batch_size

_WINDOW, _OVERLAP = 384, 128  # tokens, of a context in parts, as in transformers' pipeline


class Heads(Texts):
    """The methods of Transformer that say something of tokens in texts."""

    if TYPE_CHECKING:  # of Transformer

        def logits(self, tokens: Iterable) -> list[np.ndarray]: ...
        def head_scores(self, states: np.ndarray) -> np.ndarray: ...

    def entities(
        self,
        texts: str | Iterable[str],
        aggregation_strategy: str = "none",
        *,
        ignore_labels: Iterable[str] = ("O",),
        batch_size: int = 32,
    ) -> list:
        """What a token classifier finds in texts, as transformers' token-classification pipeline gives it: for one text
        a list of dicts, for several a list of such lists.

        texts: cut to config.max_length tokens. aggregation_strategy: "none": a dict for each token, {"entity": label,
        "score": its probability, "index": place of the token, "word": the token, "start", "end": places in the text, in
        characters}; "simple": neighbours of one kind together, {"entity_group", "score", "word", "start", "end"};
        "first", "average", "max": the same of whole words, which take the label of their first token, of the largest
        mean probability, or of the largest one. ignore_labels: left out. batch_size: texts in one pass.
        Raises UnsupportedError where the model is no token classifier, CqError for other arguments."""
        if self.config.token_head != "labels":
            raise UnsupportedError(f"entities: this {self.config.family} model is no token classifier")
        if aggregation_strategy not in AGGREGATIONS:
            raise CqError(f"aggregation_strategy: need one of {AGGREGATIONS}, got {aggregation_strategy!r:.100}")
        check_batch_size(batch_size)
        one, listed = self._texts(texts, "entities")
        encoded, ignored = [self._encoded(text, None) for text in listed], tuple(ignore_labels)
        results = []
        for start in range(0, len(listed), batch_size):
            part = encoded[start : start + batch_size]
            scores = self.logits([self._sequence(encoding) for encoding in part])
            for text, encoding, rows in zip(listed[start : start + batch_size], part, scores):
                pieces = self._pieces(text, encoding, softmax(rows))
                results.append(found(pieces, self.config.labels, aggregation_strategy, ignored, self._joined_text))
        return results[0] if one else results

    def answer(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        *,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
    ) -> dict | list[dict]:
        """The spans of `context` that answer `question` best, as transformers' question-answering pipeline picked them:
        {"score": probability, "start", "end": places in the context in characters, "answer": the text between them};
        a list, the best first, where top_k asks for several and there are.

        Long contexts go through in windows of at most 384 tokens that overlap by 128. An answer begins and ends with
        whole words. max_answer_len: in tokens, at least 1. handle_impossible_answer: "" is an answer too, with the
        probability that there is none. Raises UnsupportedError where the model has no such head, CqError for what are
        no texts and for a question that leaves a context no room."""
        if self.config.token_head != "spans":
            raise UnsupportedError(f"answer: this {self.config.family} model has no question-answering head")
        for name, number in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if type(number) is not int or number < 1:
                raise CqError(f"{name}: need a whole number of at least 1, got {number!r:.100}")
        if not isinstance(context, str) or not context.strip():
            raise CqError("answer: need a context, a text that is not empty")
        windows = self._windows(question, context)
        answers: list[dict] = []
        nothing = 1.0
        for encoding, rows in zip(windows, self.logits([self._sequence(encoding) for encoding in windows])):
            spans, none = best_spans(rows, self._in_context(encoding), max_answer_len, top_k)
            nothing = min(nothing, none)
            for first, last, score in spans:
                start, end = _characters(encoding, first, last)
                answers.append({"score": score, "start": start, "end": end, "answer": context[start:end]})
        if handle_impossible_answer:
            answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        best = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return best[0] if len(best) == 1 else best

    def fill(self, text: str | Iterable[str], top_k: int = 5, *, batch_size: int = 32) -> list:
        """The tokens that stand best in place of a mask, as transformers' fill-mask pipeline gives them: [{"score":
        probability, "token": id, "token_str": its text, "sequence": the text with it}, …], the best first. A text with
        several masks gives such a list for each, filled alone; several texts give a list of results.

        text: with the tokenizer's mask token, "[MASK]" or "<mask>", in it. top_k: at least 1, at most the vocabulary.
        batch_size: texts in one pass. Raises UnsupportedError where the model is no masked language model, CqError for
        a text without a mask."""
        if not self.config.masked_lm:
            raise UnsupportedError(f"fill: this {self.config.family} model is no masked language model")
        if type(top_k) is not int or not 1 <= top_k <= self.config.vocab_size:
            raise CqError(f"top_k: need a whole number from 1 to {self.config.vocab_size}, got {top_k!r:.100}")
        check_batch_size(batch_size)
        one, texts = self._texts(text, "fill")
        tokens, mask = self.tokens_of(texts), self._id_of("mask_token", "[MASK]", "<mask>")
        plain = [ids.ids if isinstance(ids, Sequence) else ids for ids in tokens]
        for i, ids in enumerate(plain):
            if mask is None or mask not in ids:
                raise CqError(f"fill: text {i} has no mask token; the tokenizer's is {self._named('mask_token')!r}")
        results = []
        for start in range(0, len(tokens), batch_size):
            states = self.forward(tokens[start : start + batch_size])
            for ids, rows in zip(plain[start : start + batch_size], states):
                places = np.flatnonzero(ids == mask).tolist()
                found = [self._filled(ids, p, row, top_k) for p, row in zip(places, self.head_scores(rows[places]))]
                results.append(found[0] if len(found) == 1 else found)
        return results[0] if one else results

    # --- texts and tokens ---------------------------------------------------------------------------------------------

    @property
    def _words(self) -> Tokenizer:
        assert self.tokenizer is not None, "texts became tokens, or an error"
        return self.tokenizer

    def _texts(self, texts: str | Iterable[str], what: str) -> tuple[bool, list[str]]:
        """Whether it is one text; and all of them."""
        texts = as_items(texts)
        if isinstance(texts, str):
            return True, [texts]
        listed = list(texts) if is_iterable(texts) else []
        if not is_iterable(texts) or not all(isinstance(text, str) for text in listed):
            raise CqError(f"{what}: need a text, or an iterable of texts")
        return False, listed

    def _sequence(self, encoding: Encoding) -> np.ndarray | Sequence:
        return marked(np.array(encoding.ids, np.int32), encoding.type_ids, None, self.config, "texts")

    def _pieces(self, text: str, encoding: Encoding, scores: np.ndarray) -> list[Piece]:
        """Those of the text, without what the tokenizer puts around it. Where word pieces say so, a token that is
        shorter in the text than in the vocabulary continues a word; else one without white space before it."""
        says, unknown = getattr(self._words.model, "continuing_subword_prefix", None), self._named("unk_token")
        pieces = []
        for i, (word, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets)):
            if encoding.special_tokens_mask[i]:
                continue
            written = text[start:end]
            continues = len(word) != len(written) if says else start > 0 and " " not in text[start - 1 : start + 1]
            if word == unknown:
                word, continues = written, False
            pieces.append(Piece(word, start, end, i, continues, scores[i]))
        return pieces

    def _joined_text(self, words: list[str]) -> str:
        decoder = self._words.decoder
        return " ".join(words) if decoder is None else decoder.decode(words)

    def _windows(self, question: str, context: str) -> list[Encoding]:
        asked = self._encoded(question, None, False)
        rest = self._encoded(context, None, False, whole=True)
        most = min(self.config.max_length, self.config.max_positions, _WINDOW)
        room, overlap = most - len(asked) - self._words.num_special_tokens_to_add(True), min(most // 2, _OVERLAP)
        if room <= overlap:
            raise CqError(f"question: {len(asked)} tokens leave the context no room in windows of {most}; shorten it")
        rest.truncate(room, overlap)
        return [self._words.post_process(asked, part) for part in (rest, *rest.overflowing)]

    def _in_context(self, encoding: Encoding) -> np.ndarray:
        """bool (len,): the context's tokens, and the one that stands for no answer."""
        cls = self._id_of("cls_token", "[CLS]", "<s>")
        return np.array([place == 1 or i == cls for place, i in zip(encoding.sequence_ids, encoding.ids)])

    def _filled(self, ids: np.ndarray, place: int, scores: np.ndarray, top_k: int) -> list[dict]:
        probabilities, single = softmax(scores), np.count_nonzero(ids == ids[place]) == 1
        rows = []
        for token in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            whole = np.where(np.arange(len(ids)) == place, token, ids)
            whole = whole[whole != self._id_of("pad_token", "[PAD]", "<pad>")]
            row = {
                "score": float(probabilities[token]),
                "token": token,
                "token_str": self._words.decode([token], False),
            }
            rows.append(row | {"sequence": self._words.decode(whole.tolist(), skip_special_tokens=bool(single))})
        return rows

    def _named(self, name: str, *usual: str) -> str | None:
        """A special token by its name; where no file says it, the usual one that the tokenizer has."""
        said = (self.config.special_tokens or {}).get(name)
        there = (text for text in usual if self._words.token_to_id(text) is not None)
        return next(there, None) if said is None else said

    def _id_of(self, name: str, *usual: str) -> int | None:
        text = self._named(name, *usual)
        return None if text is None else self._words.token_to_id(text)


def _characters(encoding: Encoding, first: int, last: int) -> tuple[int, int]:
    """Where the words of these tokens begin and end in the context; where the tokenizer knows no words, the tokens."""
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    spans = [None if word is None else encoding.word_to_chars(word, 1) for word in words]
    if spans[0] is None or spans[1] is None:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return spans[0][0], spans[1][1]
