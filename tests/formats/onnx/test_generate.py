"""Decoders with past keys and values."""

import numpy as np
import pytest

import cq

PLAIN = cq.Scheme(attention="float32")
KINDS = {
    "float32": None,
    "weight-only": cq.WeightOnly(),
    "dynamic": cq.Dynamic(PLAIN),
    "static": cq.Static(),
    "static plain": cq.Static(PLAIN),
}


def greedy(graph, ids: np.ndarray, count: int) -> list[int]:
    """Token after token, each with what the ones before it left."""
    found: list[int] = []
    step, past = [ids], None
    while len(found) < count:
        past = graph(step, past=past)
        found.append(int(past["logits"][0, -1].argmax()))
        step = [np.array([found[-1]])]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text(tiny_lm, exported, kind):
    model = cq.load(tiny_lm)
    prompt = model.tokenize("a tiny decoder")
    if KINDS[kind] is not None:
        model = cq.quantize(model, KINDS[kind], [prompt] if isinstance(KINDS[kind], cq.Static) else None)
    found = greedy(exported(model), prompt, 24)
    assert model.tokenizer.decode(found) == model.generate("a tiny decoder", max_new_tokens=24, temperature=0)


WINDOWED = dict(window=5, local=(True, False), local_rope_theta=100.0, norm_outputs=True, attention_cap=4.0)


@pytest.mark.parametrize("kind", [*KINDS, "static stretched"])
def test_greedy_tokens_through_a_window(random_model, exported, sequences, kind):
    """Layers with and without a window, whose text becomes four times as long."""
    strategy = KINDS.get(kind, cq.Static(stretch=True))
    model, _ = random_model("llama", **WINDOWED)
    (prompt,) = sequences(model, (6,))
    if strategy is not None:
        needs = isinstance(strategy, cq.Static)
        model = cq.quantize(model, strategy, sequences(model, (30, 20)) if needs else None)
    assert greedy(exported(model), prompt, 20) == model.generate(prompt, 20, temperature=0).tolist()


def test_padding_on_the_left(random_model, exported, sequences):
    """As prompts of different lengths are continued together."""
    model, _ = random_model("llama")
    tokens = sequences(model)
    for row, own in zip(exported(model).rows(tokens, "logits", left=True), model.logits(tokens)):
        np.testing.assert_allclose(row, own, rtol=1e-3, atol=1e-4)
