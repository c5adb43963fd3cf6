"""all-MiniLM-L6-v2 in every strategy of cq beside torch and onnxruntime: the same token ids, hidden states out."""
import numpy as np
import pytest

import cq
from cq.formats.names import canonical
from cq.report.samples import Samples, read

from . import minilm, peers
from .measure import Entry, contest, sqnr_db

SHAPES = {"1×16": (1, 16), "1×128": (1, 128), "8×128": (8, 128), "32×64": (32, 64)}
RAGGED, SENTENCES, CALIBRATION_SENTENCES = "32 sentences", 32, 200
WORK = "hidden states"


@pytest.fixture(scope="module")
def float_model(minilm_folder):
    return cq.load(minilm_folder)


@pytest.fixture(scope="module")
def models(float_model) -> dict[str, cq.Transformer]:
    """Name → float32 and every strategy."""
    if not minilm.DATA.is_dir():
        pytest.skip(f"static is calibrated on STS, and the data is not there: {minilm.DATA}")
    calibration = Samples(read(minilm.CALIBRATION, float_model).tokens).limit(CALIBRATION_SENTENCES)
    return {"cq float32": float_model, "cq weight-only": cq.quantize(float_model, cq.WeightOnly()),
            "cq dynamic": cq.quantize(float_model, cq.Dynamic()),
            "cq static": cq.quantize(float_model, cq.Static(), calibration=calibration)}


@pytest.fixture(scope="module")
def rivals(float_model, minilm_folder, threads, tmp_path_factory) -> dict:
    """Name → function (ids, mask) → hidden."""
    found = {}
    if peers.HAVE_TORCH:
        found |= peers.torch_encoders(minilm_folder, threads)
    if peers.HAVE_ONNXRUNTIME:
        from safetensors.numpy import load_file
        weights = canonical(load_file(minilm_folder / "model.safetensors"), "bert", str(minilm_folder))
        found |= peers.onnx_encoders(float_model.config, weights, tmp_path_factory.mktemp("onnx"), threads)
    return found


def sequences(case: str, model: cq.Transformer) -> list[np.ndarray]:
    """Token ids of a case: random ones of one length, or sentences spread evenly over STS 2014."""
    if case == RAGGED:
        return Samples(read(minilm.EVALUATION, model).tokens).limit(SENTENCES).tokens
    return list(np.random.default_rng(0).integers(1000, model.config.vocab_size, SHAPES[case]).astype(np.int32))


def padded(tokens: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask, int64 (batch, longest)."""
    ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
    mask = np.zeros_like(ids)
    for i, sequence in enumerate(tokens):
        ids[i, :len(sequence)], mask[i, :len(sequence)] = sequence, 1
    return ids, mask


def operations(config, tokens: list[np.ndarray]) -> float:
    """Of one forward pass without padding: linear layers and attention's two products."""
    weights = 4 * config.hidden_size ** 2 + 2 * config.hidden_size * config.intermediate_size
    pairs = sum(len(sequence) ** 2 for sequence in tokens)
    return 2.0 * config.num_layers * (weights * sum(map(len, tokens)) + 2 * config.hidden_size * pairs)


@pytest.mark.parametrize("case", [*SHAPES, RAGGED], ids=lambda case: case.replace("×", "x").replace(" ", "-"))
def test_model(benchmark, threads, models, rivals, float_model, case):
    tokens = sequences(case, float_model)
    ids, mask = padded(tokens)
    count, work = sum(map(len, tokens)), operations(float_model.config, tokens)
    reference = float_model.forward(tokens)
    entries = []

    def enter(name: str, call, outputs: list[np.ndarray], padding: str = "") -> None:
        accuracy = sqnr_db(reference, outputs)
        kind = "float32" if "float32" in name or "weight-only" in name else "int8"
        assert accuracy > (100 if "float32" in name else 4), f"{name} computes something else: {accuracy} dB from float32"
        more = {"sqnr_db": accuracy, "sequences": len(tokens), "tokens": count} | ({"padding": padding} if padding else {})
        entries.append(Entry(WORK, name, call, work, kind, more))

    for name, model in models.items():
        enter(name, lambda model=model: model.forward(tokens), model.forward(tokens))
    note = f"computes {ids.size} tokens, {ids.size - count} of them padding" if ids.size > count else ""
    for name, run in rivals.items():
        outputs = [row[:len(sequence)] for row, sequence in zip(run(ids, mask), tokens)]
        enter(name, lambda run=run: run(ids, mask), outputs, note)
    contest(benchmark, case, entries, threads, rounds=5)

