"""`encode`, with the arguments of sentence-transformers. A part of Transformer of its own; knows no layers."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import CqError
from .inputs import as_items, check_batch_size, in_parts, is_iterable
from .pooling import normalized
from .sampling import is_whole
from .texts import Texts

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


class SentenceEncoding(Texts):
    """The method of Transformer that scripts for sentence-transformers call."""

    def encode(
        self,
        sentences: str | Iterable,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """`embed` as sentence-transformers' `encode`: (n, dim), or (dim,) for a single text.

        sentences, prompt, prompt_name, batch_size: as for `embed`. show_progress_bar: on stderr; None: no.
        output_value: "token_embeddings" gives the final states of all tokens instead, a list of (len, hidden) float32
        (for a single text one array). precision: "float32"; "int8" or "uint8", 255 steps between the smallest and the
        largest value that each feature has among these sentences, of which there must be two; "binary" or "ubinary",
        a bit for each feature above 0, eight to an int8 (less 128) or uint8. truncate_dim: so many features are kept;
        normalize_embeddings: then to length 1.
        convert_to_numpy, convert_to_tensor, device: only as they stand, or device="cpu": there is no torch.
        Raises CqError for other values, else as `embed`."""
        if convert_to_numpy is not True or convert_to_tensor is not False or device not in (None, "cpu"):
            raise CqError(
                "encode: gives NumPy arrays, worked out on the CPU; leave convert_to_numpy, convert_to_tensor and "
                "device out, and use torch.from_numpy(result) for a tensor"
            )
        check_batch_size(batch_size)
        if precision not in PRECISIONS:
            raise CqError(f"precision: need one of {PRECISIONS}, got {precision!r:.100}")
        if truncate_dim is not None and not is_whole(truncate_dim, 1):
            raise CqError(f"truncate_dim: need a positive whole number, got {truncate_dim!r:.100}")
        one, samples = isinstance(sentences, str), as_items([sentences] if isinstance(sentences, str) else sentences)
        parts = _parts(samples, batch_size, bool(show_progress_bar))
        if output_value == "token_embeddings":
            if precision != "float32" or normalize_embeddings or truncate_dim is not None:
                raise CqError("encode: token_embeddings come as they are, without precision, truncation or normalizing")
            given = (self._prompted(part, prompt, prompt_name)[0] for part in parts)
            states = [rows for part in given for rows in self.forward(self.tokens_of(part))]
            return states[0] if one else states
        if output_value != "sentence_embedding":
            raise CqError(f"output_value: need 'sentence_embedding' or 'token_embeddings', got {output_value!r:.100}")
        rows = [self.embed(part, batch_size, prompt=prompt, prompt_name=prompt_name) for part in parts]
        result = np.concatenate(rows) if rows else self.embed([])
        result = result[:, :truncate_dim]
        result = coded(normalized(result) if normalize_embeddings else result, precision)
        return result[0] if one else result


def _parts(samples: Any, size: int, shown: bool) -> Iterator[Any]:
    """The samples in parts; what is no list of them in one."""
    if not is_iterable(samples) or isinstance(samples, np.ndarray) and samples.ndim != 2:
        yield samples
        return
    parts = in_parts(list(samples), size)
    if shown:
        from rich.console import Console
        from rich.progress import track

        yield from track(parts, "Batches", console=Console(stderr=True))
    else:
        yield from parts


def coded(embeddings: np.ndarray, precision: str) -> np.ndarray:
    """float32 (n, dim) in one of PRECISIONS, as sentence-transformers' quantize_embeddings has them."""
    if precision == "float32" or not len(embeddings):
        return embeddings
    if precision in ("binary", "ubinary"):
        bits: np.ndarray = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - 128).astype(np.int8)
    if len(embeddings) == 1:
        raise CqError(f"precision: {precision} takes its ranges from the sentences, and one has none; give several")
    low = embeddings.min(0)
    steps = (embeddings.max(0) - low) / np.float32(255)
    codes: np.ndarray = np.clip(np.floor((embeddings - low) / np.where(steps == 0, np.float32(1), steps)), 0, 255)
    return codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)
