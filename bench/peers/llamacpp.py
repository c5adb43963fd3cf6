"""llama.cpp: Q8_0, through llama-cpp-python, built from source for the machine's own CPU. Times nothing."""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

HAVE = importlib.util.find_spec("llama_cpp") is not None
HELD_BY = None  # it is compiled for the CPU
CONTEXT, Q8_0 = 1024, 7  # tokens; llama_ftype


def language_models(file: Path, scratch: Path, threads: int) -> dict:
    """Q8_0, made by llama.cpp's own quantizer from the float32 that the file's codes stand for."""
    import llama_cpp as api

    from . import LanguageModel

    if b"OPENMP = 1" in api.llama_print_system_info():
        raise RuntimeError(
            "llama.cpp uses OpenMP: its threads would be counted with torch's and cq's. Build it again "
            "with CMAKE_ARGS=-DGGML_OPENMP=OFF"
        )
    api.llama_log_set(_SILENT, None)
    made, choices = scratch / "q8_0.gguf", api.llama_model_quantize_default_params()
    choices.ftype, choices.allow_requantize = Q8_0, True
    if api.llama_model_quantize(str(file).encode(), str(made).encode(), choices):
        raise RuntimeError(f"llama.cpp cannot make Q8_0 of {file}")
    return {"llama.cpp Q8_0": LanguageModel(*_Context(api, made, threads).ways(), made.stat().st_size)}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _SILENT(level, text, data):
    pass


class _Context:
    """A loaded model and the tokens that it has seen."""

    def __init__(self, api, file: Path, threads: int):
        self.api, self.model = api, api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        choices = api.llama_context_default_params()
        choices.n_ctx = choices.n_batch = choices.n_ubatch = CONTEXT
        choices.n_threads = choices.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, choices)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot run {file}")
        self.memory = api.llama_get_memory(self.context)
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def ways(self) -> tuple[Callable, Callable, Callable]:
        """logits, prefill and generate, as LanguageModel says."""

        def generate(ids: np.ndarray, count: int) -> Callable:
            def call() -> list[int]:
                self.api.llama_memory_clear(self.memory, False)
                found = [self._next(ids.tolist())]
                while len(found) < count:
                    found.append(self._next(found[-1:]))
                return found

            return call

        return self._logits, lambda ids: lambda call=generate(ids, 1): call()[0], generate

    def _next(self, ids: list[int]) -> int:
        """The likeliest token after these, which follow those of before."""
        given = (self.api.llama_token * len(ids))(*ids)
        self._run(self.api.llama_batch_get_one(given, len(ids)))
        return int(self._scores(-1).argmax())

    def _logits(self, ids: np.ndarray) -> np.ndarray:
        self.api.llama_memory_clear(self.memory, False)
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        self._run(batch)
        found = np.stack([self._scores(i) for i in range(len(ids))])
        self.api.llama_batch_free(batch)
        return found

    def _run(self, batch) -> None:
        if status := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama.cpp: llama_decode returned {status}")

    def _scores(self, i: int) -> np.ndarray:
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.vocab_size,))
