"""Calibrate and embed on a Dask cluster of worker processes.

    python examples/cluster.py all-MiniLM-L6-v2 documents.txt vectors.npy

Needs the extra cquant[dask]. Starts two workers on this machine; give Client a scheduler's address to use a cluster.
Calibration gives the same bits as in one process.
"""

import os
import sys
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster, get_worker

import cq


def embed(checkpoint: str, texts: list[str]) -> np.ndarray:
    """Each worker opens the checkpoint once. The file is mapped, so that all workers on a machine share its pages."""
    worker = get_worker()
    if getattr(worker, "encoder", None) is None:
        worker.encoder = cq.load(checkpoint)
    return worker.encoder.embed(texts)


def main(model: str, documents: str, output: str) -> None:
    lines = [line for line in Path(documents).read_text(encoding="utf-8").splitlines() if line.strip()]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        encoder = cq.quantize(cq.load(model), cq.Static(), calibration=lines[:200], executor=client.get_executor())
        checkpoint = os.path.abspath(output) + ".safetensors"
        cq.save(encoder, checkpoint)
        parts = [lines[i : i + 256] for i in range(0, len(lines), 256)]
        vectors = client.gather([client.submit(embed, checkpoint, part) for part in parts])
    np.save(output, np.concatenate(vectors))
    print(f"wrote {len(lines)} vectors to {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
