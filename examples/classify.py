"""Score texts with a sequence classifier, in float32 and in int8.

    python examples/classify.py MODEL texts.txt

MODEL is a folder with a sequence classifier's head; TEXTS has one text a line. Prints the best label of each text under
both, and how many agree.
"""

import sys
from pathlib import Path

import cq


def main(model: str, texts: str) -> None:
    lines = [line for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    float32 = cq.load(model)
    int8 = cq.quantize(float32, cq.Dynamic())
    labels = float32.config.labels
    exact, coded = float32.classify(lines), int8.classify(lines)
    for line, one, other in zip(lines, exact.argmax(axis=1), coded.argmax(axis=1)):
        print(f"{labels[one]:12}  {labels[other]:12}  {line}")
    agree = (exact.argmax(axis=1) == coded.argmax(axis=1)).mean()
    print(f"int8 agrees on {agree:.0%} of the texts, with {int8.nbytes / float32.nbytes:.0%} of the memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
