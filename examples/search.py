"""Quantize a sentence encoder and search with it.

    python examples/search.py all-MiniLM-L6-v2 documents.txt "what do cats eat?"

MODEL is a sentence encoder; DOCUMENTS has one document a line. Prints the three best with their cosine similarity.
"""

import sys
from pathlib import Path

import numpy as np

import cq


def main(model: str, documents: str, query: str) -> None:
    lines = [line for line in Path(documents).read_text(encoding="utf-8").splitlines() if line.strip()]
    encoder = cq.quantize(cq.load(model), cq.Static(), calibration=lines[:200])
    vectors = encoder.embed(lines)
    scores = vectors @ encoder.embed([query])[0]  # embeddings are normalized, so this is the cosine
    for i in np.argsort(-scores)[:3]:
        print(f"{scores[i]:.3f}  {lines[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
