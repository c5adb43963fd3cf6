"""A step of quantization-aware training of all-MiniLM-L6-v2 beside torch's: the same batch, loss and optimizer."""

import numpy as np
import pytest

import cq
from cq.model.forms import Fixed
from cq.quantize.static import plan_fixed
from cq.report.bench import operations
from cq.train import losses
from cq.train.batch import Packed
from cq.train.network import Network
from cq.train.optimizer import AdamW
from cq.train.passes import freed_memory_kept

from . import encoder
from .measure import Entry, contest
from .test_model import RAGGED, SENTENCES, SHAPES

torch_qat = pytest.importorskip("bench.torch_qat")


@freed_memory_kept()
@pytest.mark.parametrize("case", ["8×128", RAGGED], ids=["8x128", "32-sentences"])
def test_step(benchmark, threads, float_model, case):
    model = float_model
    tokens = encoder.sentences(model, SENTENCES) if case == RAGGED else encoder.random(model, *SHAPES[case])
    unknown = Fixed("uint8", False, 1.0, 0)  # found by moving averages
    network = Network(model.config, plan_fixed(model.config, cq.Static(), lambda site: unknown), model.weights())
    optimizer, embeddings = AdamW(network.parameters, 0.0, (0.9, 0.999)), model.embed(tokens)

    def ours() -> float:
        network.parameters.clear()
        batch = Packed(tokens)
        hidden = batch.split(network.forward(batch))
        loss, gradient = losses.embedding_distillation(losses.pool(hidden, model.config), embeddings)
        network.backward(hidden=batch.join(losses.pool_back(gradient, hidden, model.config)))
        network.settle()
        optimizer.step(1e-5, 1.0)
        network.refresh()
        return loss

    torch = torch_qat.torch
    ids, mask = (torch.tensor(array) for array in encoder.padded(tokens))
    targets = torch.tensor(embeddings)
    step = torch_qat.step_of(model.config, model.weights(), threads)
    first = np.array([[ours(), step(ids, mask, targets)] for _ in range(2)])
    assert np.ptp(first, axis=1).max() < 0.3 * first.max(), f"the two train differently: {first}"
    count = sum(map(len, tokens))
    note = (
        {"padding": f"computes {ids.numel()} tokens, {ids.numel() - count} of them padding"}
        if ids.numel() > count
        else {}
    )
    work = 3 * operations(model, tokens)
    contest(
        benchmark,
        case,
        [
            Entry("QAT step", "cq QAT step", ours, work, "float32", {"tokens": count}),
            Entry(
                "QAT step",
                "torch QAT step",
                lambda: step(ids, mask, targets),
                work,
                "float32",
                {"tokens": count} | note,
            ),
        ],
        threads,
        rounds=3,
    )
