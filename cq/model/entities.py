"""From labels' probabilities of every token to entities with their places in the text, grouped as transformers'
token-classification pipeline groups them. Knows no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

AGGREGATIONS = ("none", "simple", "first", "average", "max")
Join = Callable[[list[str]], str]  # tokens → the text that they spell


@dataclass(frozen=True)
class Piece:
    """A token: its text as the vocabulary has it, its place in the text in characters and in the sequence, whether it
    continues the word before it, and the probability of each label."""

    word: str
    start: int
    end: int
    index: int
    continues: bool
    scores: np.ndarray


def entities_of(
    pieces: list[Piece], labels: Sequence[str], aggregation: str, ignored: Sequence[str], join: Join
) -> list[dict]:
    """aggregation "none": a dict for each token, entity, score, index, word, start and end. Else for each run of
    neighbours of one kind, entity_group, score, word, start and end: of tokens ("simple"), or of words, which take the
    label of their first token, of the largest probability ("max"), or of the largest mean ("average")."""
    if aggregation in ("none", "simple"):
        entities = [_of_token(piece, labels) for piece in pieces]
    else:
        entities = [_of_word(word, labels, aggregation, join) for word in _words(pieces)]
    if aggregation == "none":
        return [entity for entity in entities if entity["entity"] not in ignored]
    groups = [_group(run, join) for run in _runs(entities)]
    return [group for group in groups if group["entity_group"] not in ignored]


def _of_token(piece: Piece, labels: Sequence[str]) -> dict:
    best = int(piece.scores.argmax())
    entity = {"entity": labels[best], "score": float(piece.scores[best]), "index": piece.index}
    return entity | {"word": piece.word, "start": piece.start, "end": piece.end}


def _words(pieces: list[Piece]) -> list[list[Piece]]:
    words: list[list[Piece]] = []
    for piece in pieces:
        if words and piece.continues:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _of_word(pieces: list[Piece], labels: Sequence[str], aggregation: str, join: Join) -> dict:
    if aggregation == "first":
        scores = pieces[0].scores
    elif aggregation == "max":
        scores = max(pieces, key=lambda piece: piece.scores.max()).scores
    else:
        scores = np.stack([piece.scores for piece in pieces]).mean(0)
    best = int(scores.argmax())
    entity = {"entity": labels[best], "score": float(scores[best]), "word": join([piece.word for piece in pieces])}
    return entity | {"start": pieces[0].start, "end": pieces[-1].end}


def _runs(entities: list[dict]) -> list[list[dict]]:
    """Neighbours of one kind; "B-" begins a run of its own."""
    runs: list[list[dict]] = []
    for entity in entities:
        begins, kind = _kind(entity["entity"])
        if runs and not begins and kind == _kind(runs[-1][-1]["entity"])[1]:
            runs[-1].append(entity)
        else:
            runs.append([entity])
    return runs


def _kind(label: str) -> tuple[bool, str]:
    """Whether the label begins an entity, and the kind of it: "B-PER" → (True, "PER")."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group(run: list[dict], join: Join) -> dict:
    """Named after its first label, without what stands before a hyphen."""
    return {
        "entity_group": run[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([entity["score"] for entity in run])),
        "word": join([entity["word"] for entity in run]),
        "start": run[0]["start"],
        "end": run[-1]["end"],
    }
