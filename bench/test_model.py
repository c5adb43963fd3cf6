"""all-MiniLM-L6-v2 in every strategy of cq beside its peers: the same token ids, hidden states out; batches of one
length, a batch of sentences, and a stream of them."""

import pytest

import cq
from cq.report.bench import activation_bytes, operations

from . import encoder
from .measure import Entry, contest, sqnr_db

SHAPES = {"1×16": (1, 16), "1×128": (1, 128), "8×128": (8, 128), "32×64": (32, 64), "16×256": (16, 256)}
RAGGED, SENTENCES = "32 sentences", 32
# a round takes every contestant through the whole stream: half a minute
STREAM, STREAM_ROUNDS = "stream of sentences", 3
SORTED = ", sorted by length"
WORK, ROUNDS = "hidden states", 4


@pytest.fixture(scope="module")
def models(float_model, calibration) -> dict[str, cq.Transformer]:
    """Name → float32 and every strategy."""
    return {f"cq {name}": model for name, model in encoder.strategies(float_model, calibration).items()}


def entry(name: str, call, outputs, reference, tokens, config, more: dict) -> Entry:
    """A contestant, once its outputs are those of this model."""
    accuracy = sqnr_db(reference, outputs)
    kind = "float32" if "float32" in name or "weight-only" in name else "int8"
    assert accuracy > (100 if "float32" in name else 1), f"{name} computes something else: {accuracy} dB from float32"
    facts = {"sqnr_db": accuracy, "sequences": len(tokens), "tokens": sum(map(len, tokens))}
    return Entry(WORK, name, call, operations(config, tokens), kind, facts | more)


@pytest.mark.parametrize("case", [*SHAPES, RAGGED], ids=lambda case: case.replace("×", "x").replace(" ", "-"))
def test_model(benchmark, threads, models, rivals, float_model, case):
    tokens = encoder.sentences(float_model, SENTENCES) if case == RAGGED else encoder.random(float_model, *SHAPES[case])
    ids, mask = encoder.padded(tokens)
    reference, padding = float_model.forward(tokens), ids.size - sum(map(len, tokens))
    entries = [
        entry(
            name,
            lambda model=model: model.forward(tokens),
            model.forward(tokens),
            reference,
            tokens,
            float_model,
            {"activation_bytes": activation_bytes(model, tokens)},
        )
        for name, model in models.items()
    ]
    for name, prepare in rivals.items():
        call = prepare(ids, mask, True)
        outputs = [row[: len(sequence)] for row, sequence in zip(call(), tokens)]
        entries.append(
            entry(name, call, outputs, reference, tokens, float_model, {"padding": padding} if padding else {})
        )
    contest(benchmark, case, entries, threads, ROUNDS)


def test_stream(benchmark, threads, models, rivals, float_model):
    """Batches of 32 sentences: as they come for cq, which pads nothing; for peers as they come and, as rivals of their
    own, sorted by length."""
    tokens = encoder.stream(float_model)
    reference, ragged = float_model.forward(tokens), encoder.batches(tokens)
    calls, order = (
        {
            name: [lambda model=model, batch=batch: model.forward(batch) for batch in ragged]
            for name, model in models.items()
        },
        {},
    )
    for suffix, way in (("", range(len(tokens))), (SORTED, sorted(range(len(tokens)), key=lambda i: len(tokens[i])))):
        batches = [encoder.padded(batch) for batch in encoder.batches([tokens[i] for i in way])]
        padding = sum(ids.size for ids, _ in batches) - sum(map(len, tokens))
        for name, prepare in rivals.items():
            calls[name + suffix] = [prepare(ids, mask, False) for ids, mask in batches]
            order[name + suffix] = way, padding
    entries = []
    for name, parts in calls.items():
        way, padding = order.get(name, (range(len(tokens)), 0))
        outputs: list = [None] * len(tokens)
        for i, hidden in zip(way, (hidden.copy() for part in parts for hidden in part())):
            outputs[i] = hidden[: len(tokens[i])]
        entries.append(
            entry(
                name,
                lambda parts=parts: [part() for part in parts],
                outputs,
                reference,
                tokens,
                float_model,
                {"padding": padding} if padding else {},
            )
        )
    contest(benchmark, STREAM, entries, threads, STREAM_ROUNDS, turn_s=0, warm=False)
