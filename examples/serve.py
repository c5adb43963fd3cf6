"""Embed texts from a pool of processes that share one checkpoint file.

    cq quantize all-MiniLM-L6-v2 encoder.safetensors --strategy dynamic
    python examples/serve.py encoder.safetensors documents.txt vectors.npy

Each process maps the file, so its pages are in memory once, and runs on one thread: for many requests at a time that is
faster than one process with many threads.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import cq


def start(checkpoint: str) -> None:
    """In each process, once."""
    global encoder
    cq.set_num_threads(1)
    encoder = cq.load(checkpoint)


def embed(texts: list[str]) -> np.ndarray:
    return encoder.embed(texts)


def main(checkpoint: str, documents: str, output: str, processes: int = 2) -> None:
    lines = [line for line in Path(documents).read_text(encoding="utf-8").splitlines() if line.strip()]
    batches = [lines[i : i + 64] for i in range(0, len(lines), 64)]
    with ProcessPoolExecutor(processes, get_context("spawn"), start, (checkpoint,)) as pool:
        vectors = list(pool.map(embed, batches))
    np.save(output, np.concatenate(vectors))
    print(f"wrote {len(lines)} vectors to {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
