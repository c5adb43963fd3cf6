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


def test_past_is_what_one_pass_gives(random_model, exported, sequences):
    """In pieces of several tokens; a GPT-2 type, whose positions come from a table."""
    for changes in ({}, dict(norm="layer", gated=False, activation="gelu_tanh", rope_theta=None, num_kv_heads=6)):
        model, _ = random_model("llama", **changes)
        (ids,), past, rows = sequences(model, (11,)), None, []
        graph = exported(model)
        for piece in (ids[:4], ids[4:5], ids[5:]):
            past = graph([piece], past=past)
            rows.append(past["logits"][0])
        np.testing.assert_allclose(np.concatenate(rows), model.logits([ids])[0], rtol=1e-3, atol=1e-4)
        assert past["present.1.key"].shape == (1, model.config.num_kv_heads, 11, model.config.head_dim)


def test_padding_on_the_left(random_model, exported, sequences):
    """As prompts of different lengths are continued together."""
    model, _ = random_model("llama")
    tokens = sequences(model)
    for row, own in zip(exported(model).rows(tokens, "logits", left=True), model.logits(tokens)):
        np.testing.assert_allclose(row, own, rtol=1e-3, atol=1e-4)
