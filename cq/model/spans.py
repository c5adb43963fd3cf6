"""From scores of an answer's begin and end at every token to the best spans, picked as transformers' question-answering
pipeline picked them. Knows no tokens' texts."""

import numpy as np

from .pooling import softmax

_NEVER = np.float32(-10000)  # the score of what is no part of the context


def best_spans(
    scores: np.ndarray, allowed: np.ndarray, most_tokens: int, top_k: int
) -> tuple[list[tuple[int, int, float]], float]:
    """[(first token, last token, probability), …] of one sequence, the best first, at most `top_k` of at most
    `most_tokens` each; and the probability that there is no answer, which token 0 stands for.

    scores: float32 (len, 2), of begin and end. allowed: bool (len,), token 0 among them: where an answer may lie."""
    begin, end = (softmax(np.where(allowed, scores[:, i], _NEVER)) for i in range(2))
    nothing = float(begin[0] * end[0])
    begin[0] = end[0] = 0.0
    products = np.tril(np.triu(np.outer(begin, end)), most_tokens - 1)
    order = np.argsort(-products, axis=None, kind="stable")[:top_k]
    spans = zip(*np.unravel_index(order, products.shape))
    return [
        (int(first), int(last), float(products[first, last]))
        for first, last in spans
        if allowed[first] and allowed[last]
    ], nothing
