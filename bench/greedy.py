"""Greedy texts: what a model says after ten prompts of different kinds, and where one that was quantized first says
something else. Times nothing."""

from collections.abc import Callable

import numpy as np

import cq
from cq.model.generate import Generator
from cq.model.sampling import Sampling

TOKENS = 200  # of each text
PROMPTS = (
    "Once upon a time, in a small village at the foot of a mountain, there lived a clockmaker who",
    "Question: Why is the sky blue during the day and red in the evening?\nAnswer:",
    "Ten things to pack for a week of hiking in the mountains:\n1.",
    'def fibonacci(n):\n    """Return a list of the first n Fibonacci numbers."""\n',
    '"Where have you been?" asked Anna as she opened the door.\n"You would not believe me," said Peter.',
    "Photosynthesis is the process by which plants turn light into energy. It begins when",
    "Dear Mr. Henderson,\n\nThank you for your letter of the third of May. I am writing to",
    "To make a simple tomato soup for four people, start by",
    "The city council voted on Tuesday to close the old bridge over the river, after engineers",
    "In the summer of 1914, Europe stood at the edge of a war that",
)


def texts(model: cq.Transformer, prompts: list[np.ndarray], cache: str | None = None) -> list[np.ndarray]:
    """The TOKENS likeliest tokens after each prompt, one after another, whatever they are."""
    generator = Generator(model, prompts, TOKENS, Sampling(), cache)
    for _ in generator.steps(lambda sequence, token: False):
        pass
    return [tokens[len(prompt) :] for tokens, prompt in zip(generator.tokens, prompts)]


def compared(
    prompts: list[np.ndarray],
    wanted: list[np.ndarray],
    found: list[np.ndarray],
    logits: Callable[[np.ndarray], np.ndarray],
) -> dict:
    """How many texts are equal as far as they go; for each the place of the first token that differs, from 0, or None;
    and there by how much float32's `logits` (of ids (n,) → (n, vocabulary)) prefer their own token to the other's."""
    first, gaps = [], []
    for prompt, ours, theirs in zip(prompts, wanted, found, strict=True):
        differ = ours != theirs
        first.append(int(differ.argmax()) if differ.any() else None)
        gaps.append(None)
        if differ.any():
            at = first[-1]
            scores = logits(np.concatenate([prompt, ours[:at]]).astype(np.int32))[-1]
            gaps[-1] = round(float(scores[ours[at]] - scores[theirs[at]]), 3)
    return {"prompts": len(prompts), "tokens": TOKENS, "equal": first.count(None), "first": first, "gaps": gaps}
