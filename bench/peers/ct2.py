"""CTranslate2: int8 with its scales found at inference. Times nothing."""
import importlib.util
import logging
import os
import sys
from collections.abc import Callable

import numpy as np

import cq

HAVE = all(importlib.util.find_spec(name) for name in ("ctranslate2", "transformers"))
if HAVE:
    # Bound at once, and before torch makes the libgomp that it shares with cq visible to all: CTranslate2 would use that one instead
    # of its own, and with its workers counted there cq's and torch's threads find more of them than cores and fall asleep at once.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW)
    if "avx512vnni" in cq.info()["isa_available"]:  # read when it is loaded: left alone it takes AVX2 on AMD, 115 ms against 125
        os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
    import ctranslate2
    sys.setdlopenflags(flags)


def encoders(source, threads: int) -> dict[str, Callable]:
    """int8. It computes no padding in linear layers: it takes the lengths and leaves the rest out."""
    folder = source.scratch / "ctranslate2"
    logging.disable(logging.WARNING)
    ctranslate2.converters.TransformersConverter(str(source.folder)).convert(str(folder))
    logging.disable(logging.NOTSET)
    ready = ctranslate2.Encoder(str(folder), "cpu", compute_type="int8", intra_threads=threads, inter_threads=1)

    def prepare(ids: np.ndarray, mask: np.ndarray, often: bool) -> Callable:
        tokens, lengths = (ctranslate2.StorageView.from_array(a.astype(np.int32)) for a in (ids, mask.sum(1)))
        return lambda: np.asarray(ready.forward_batch(tokens, lengths).last_hidden_state)
    return {"CTranslate2 int8": prepare}
