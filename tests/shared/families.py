"""What the tests of model families share: random models of transformers beside what cq loads of them, and what every
family must survive under every strategy."""

import numpy as np
import torch

import cq
from cq.report.metrics import sqnr_db

TEXTBOOK = cq.Scheme.textbook()
# configurations of decoders, in transformers' words, the second in odd sizes
SMALL = dict(
    vocab_size=61,
    hidden_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=36,
    max_position_embeddings=200,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
ODD = SMALL | dict(hidden_size=42, num_attention_heads=3, num_key_value_heads=1, intermediate_size=35)
TOLERANCE = 1e-4  # of logits and hidden states, which are of the order of 1
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "dynamic": cq.Dynamic(),
    "static": cq.Static(),
    "static stream": cq.Static(residual="int8"),
    "qat": cq.QAT(steps=2, batch_size=2),
    "qat dynamic": cq.QAT(target=cq.Dynamic(), steps=2, batch_size=2),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static textbook": cq.Static(TEXTBOOK),
    "qat textbook": cq.QAT(target=cq.Static(TEXTBOOK), steps=2, batch_size=2),
}


def saved(folder, kind, config):
    """A random model, saved to `folder`, and what cq loads from there."""
    torch.manual_seed(4)
    reference = kind(config).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name.lower() and name.endswith("weight")), 0.2)
    reference.save_pretrained(folder)
    return reference, cq.load(folder)


def ragged(lengths=(7, 1, 30, 190), vocab=61):
    rng = np.random.default_rng(6)
    return [rng.integers(3, vocab, n) for n in lengths]


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        assert np.abs(a - b).max() < TOLERANCE


def outputs(reference, tokens, part):
    with torch.no_grad():
        return [reference(torch.tensor(ids)[None])[part][0].numpy() for ids in tokens]


def survives(model, chosen, folder, run=cq.Transformer.forward, longest=18):
    """Near the float32 model; all layers in the strategy's form; nothing that could overflow; and a checkpoint gives
    the very bytes and outputs."""
    samples = ragged((7, 12, 30, 25, 3, longest))
    target = chosen.target if isinstance(chosen, cq.QAT) else chosen
    needs = isinstance(chosen, (cq.Static, cq.QAT))
    quantized = cq.quantize(model, chosen, samples * 2 if needs else None)
    assert all(layer.runs_in == target.name for _, layer in quantized.linears())
    assert target.name == "weight-only" or min(quantized.headroom().values()) > 0
    attention = [row for row in quantized.coverage() if row.name.endswith("attention.scores")]
    in_int8 = target.name != "weight-only" and target.scheme.attention == "int8"
    assert {row.runs_in for row in attention} == {target.name if in_int8 else "float32"}
    paths = folder / "q.safetensors", folder / "again.safetensors"
    cq.save(quantized, paths[0])
    again = cq.load(paths[0])
    cq.save(again, paths[1])
    assert again.config == model.config and paths[0].read_bytes() == paths[1].read_bytes()
    ours, exact = run(quantized, samples), run(model, samples)
    assert all(map(np.array_equal, ours, run(again, samples)))
    decibels = sqnr_db(np.concatenate(exact), np.concatenate(ours))
    assert (15 if isinstance(target, cq.Static) else 20) < decibels < np.inf, decibels
