"""The younger encoders against transformers, on small random models of odd sizes; each under all strategies and
schemes, and in checkpoints."""

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import MPNetConfig, MPNetForSequenceClassification, MPNetModel

import cq
from cq.formats.huggingface import read_folder, write_folder

sys.path.insert(0, str(Path(__file__).parent))
from test_families import close, outputs, ragged, saved

TEXTBOOK = cq.Scheme.textbook()
_SMALL = dict(vocab_size=61, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36)
_ODD = _SMALL | dict(hidden_size=42, num_attention_heads=3, intermediate_size=35, hidden_act="relu")
_ONE = _SMALL | dict(vocab_size=67, num_hidden_layers=1, num_attention_heads=5, intermediate_size=50)
ENCODERS = {
    "mpnet": (MPNetModel, MPNetConfig(**_SMALL, max_position_embeddings=192)),
    "mpnet odd": (MPNetModel, MPNetConfig(**_ODD, max_position_embeddings=192)),
    "mpnet one": (MPNetModel, MPNetConfig(**_ONE, max_position_embeddings=202, hidden_act="gelu_new")),
}
CLASSIFIERS = {
    "mpnet": (MPNetForSequenceClassification, MPNetConfig(**_ODD, max_position_embeddings=192, num_labels=3))
}
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "dynamic": cq.Dynamic(),
    "static": cq.Static(),
    "qat": cq.QAT(steps=2, batch_size=2),
    "qat dynamic": cq.QAT(target=cq.Dynamic(), steps=2, batch_size=2),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static textbook": cq.Static(TEXTBOOK),
    "qat textbook": cq.QAT(target=cq.Static(TEXTBOOK), steps=2, batch_size=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *ENCODERS[name])
    ours, theirs = model.forward(ragged()), outputs(reference, ragged(), "last_hidden_state")
    close(ours, theirs)
    size = np.sqrt(np.mean([np.square(x).mean() for x in theirs]))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs)) < 1e-4 * size
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    close(cq.load(tmp_path / "again").forward(ragged((9,))), outputs(reference, ragged((9,)), "last_hidden_state"))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_of_labels_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *CLASSIFIERS[name])
    close(list(model.classify(ragged())), outputs(reference, ragged(), "logits"))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["mpnet odd"])
def test_every_family_under_every_strategy(tmp_path, name, strategy):
    """Near the float32 model; nothing that could overflow; and a checkpoint gives the very bytes and outputs."""
    _, model = saved(tmp_path, *ENCODERS[name])
    samples, chosen = ragged((7, 12, 30, 25, 3, 18)), STRATEGIES[strategy]
    target = chosen.target if isinstance(chosen, cq.QAT) else chosen
    needs = isinstance(chosen, (cq.Static, cq.QAT))
    quantized = cq.quantize(model, chosen, samples * 2 if needs else None)
    assert all(layer.runs_in == target.name for _, layer in quantized.linears())
    assert all(bits > 0 for bits in quantized.headroom().values())
    attention = [row for row in quantized.coverage() if row.name.endswith("attention.scores")]
    in_int8 = target.name != "weight-only" and target.scheme.attention == "int8"
    assert {row.runs_in for row in attention} == {target.name if in_int8 else "float32"}
    paths = tmp_path / "q.safetensors", tmp_path / "again.safetensors"
    cq.save(quantized, paths[0])
    again = cq.load(paths[0])
    cq.save(again, paths[1])
    assert again.config == model.config and paths[0].read_bytes() == paths[1].read_bytes()
    ours, exact = quantized.forward(samples), model.forward(samples)
    assert all(map(np.array_equal, ours, again.forward(samples)))
    noise = sum(np.square(a - b).sum() for a, b in zip(ours, exact)) / sum(np.square(b).sum() for b in exact)
    assert np.isfinite(noise) and -10 * np.log10(noise) > (15 if isinstance(target, cq.Static) else 20)
