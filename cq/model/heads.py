"""What people do with heads that read every token: find entities, answer questions out of a text, fill masks. A part of
Transformer of its own; knows no layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from ..errors import CqError, UnsupportedError
from .batch import ids_of
from .entities import AGGREGATIONS, Piece, entities_of
from .inputs import as_texts, check_batch_size, in_parts
from .pooling import softmax
from .sampling import is_whole
from .spans import best_spans
from .texts import Texts

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
        one, listed = as_texts(texts, "entities")
        encoded, ignored = [(text, self._encoded(text, None)) for text in listed], tuple(ignore_labels)
        labels, join, results = self.config.labels, self._joined_text, []
        for part in in_parts(encoded, batch_size):
            scores = self.logits([self._sequence(encoding) for _, encoding in part])
            for (text, encoding), rows in zip(part, scores):
                pieces = self._pieces(text, encoding, softmax(rows))
                results.append(entities_of(pieces, labels, aggregation_strategy, ignored, join))
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
            if not is_whole(number, 1):
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
        if not is_whole(top_k, 1) or top_k > self.config.vocab_size:
            raise CqError(f"top_k: need a whole number from 1 to {self.config.vocab_size}, got {top_k!r:.100}")
        check_batch_size(batch_size)
        one, texts = as_texts(text, "fill")
        tokens, mask = self.tokens_of(texts), self._special_id("mask_token", "[MASK]", "<mask>")
        for i, ids in enumerate(map(ids_of, tokens)):
            if mask is None or mask not in ids:
                named = self._special_token("mask_token")
                raise CqError(f"fill: text {i} has no mask token; the tokenizer's is {named!r}")
        results = []
        for part in in_parts(tokens, batch_size):
            for ids, rows in zip(map(ids_of, part), self.forward(part)):
                places = np.flatnonzero(ids == mask).tolist()
                found = [self._filled(ids, p, row, top_k) for p, row in zip(places, self.head_scores(rows[places]))]
                results.append(found[0] if len(found) == 1 else found)
        return results[0] if one else results

    # --- tokens and their texts ---------------------------------------------------------------------------------------

    def _pieces(self, text: str, encoding: Encoding, scores: np.ndarray) -> list[Piece]:
        """Those of the text, without what the tokenizer puts around it. Where word pieces say so, a token that is
        shorter in the text than in the vocabulary continues a word; else one without white space before it."""
        says = getattr(self._tokenizer.model, "continuing_subword_prefix", None)
        unknown = self._special_token("unk_token")
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
        decoder = self._tokenizer.decoder
        return " ".join(words) if decoder is None else decoder.decode(words)

    def _windows(self, question: str, context: str) -> list[Encoding]:
        asked = self._encoded(question, None, False)
        rest = self._encoded(context, None, False, whole=True)
        most = min(self.config.max_length, self.config.max_positions, _WINDOW)
        room, overlap = most - len(asked) - self._tokenizer.num_special_tokens_to_add(True), min(most // 2, _OVERLAP)
        if room <= overlap:
            raise CqError(f"question: {len(asked)} tokens leave the context no room in windows of {most}; shorten it")
        rest.truncate(room, overlap)
        return [self._tokenizer.post_process(asked, part) for part in (rest, *rest.overflowing)]

    def _in_context(self, encoding: Encoding) -> np.ndarray:
        """bool (len,): the context's tokens, and the one that stands for no answer."""
        cls = self._special_id("cls_token", "[CLS]", "<s>")
        return np.array([place == 1 or i == cls for place, i in zip(encoding.sequence_ids, encoding.ids)])

    def _filled(self, ids: np.ndarray, place: int, scores: np.ndarray, top_k: int) -> list[dict]:
        probabilities, single = softmax(scores), np.count_nonzero(ids == ids[place]) == 1
        rows = []
        for token in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            whole = np.where(np.arange(len(ids)) == place, token, ids)
            whole = whole[whole != self._special_id("pad_token", "[PAD]", "<pad>")]
            row = {
                "score": float(probabilities[token]),
                "token": token,
                "token_str": self._tokenizer.decode([token], False),
            }
            rows.append(row | {"sequence": self._tokenizer.decode(whole.tolist(), skip_special_tokens=bool(single))})
        return rows


def _characters(encoding: Encoding, first: int, last: int) -> tuple[int, int]:
    """Where the words of these tokens begin and end in the context; where the tokenizer knows no words, the tokens."""
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    spans = [None if word is None else encoding.word_to_chars(word, 1) for word in words]
    if spans[0] is None or spans[1] is None:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return spans[0][0], spans[1][1]
