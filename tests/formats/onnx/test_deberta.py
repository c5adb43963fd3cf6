"""DeBERTa's heads, exported, against transformers: one graph each for classes, tokens, answers and masked words."""

import numpy as np
import pytest
from exports import PLAIN, error
from families import outputs, ragged, saved
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
)

import cq

_SMALL = dict(vocab_size=61, num_hidden_layers=2, intermediate_size=36, max_position_embeddings=190, type_vocab_size=0)
_V3 = DebertaV2Config(
    **_SMALL,
    hidden_size=40,
    num_attention_heads=4,
    relative_attention=True,
    position_buckets=16,
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p",
)
_ODD = DebertaV2Config(**_SMALL, hidden_size=42, num_attention_heads=3, relative_attention=True, pos_att_type=["c2p"])
HEADS = {
    "none": (DebertaV2Model, {}, "last_hidden_state"),
    "classes": (DebertaV2ForSequenceClassification, dict(num_labels=3), "logits"),
    "classes of tokens": (DebertaV2ForTokenClassification, dict(num_labels=3), "logits"),
    "answers": (DebertaV2ForQuestionAnswering, {}, "start_logits"),
    "masked words": (DebertaV2ForMaskedLM, {}, "logits"),
    "masked words, head that shares their table": (DebertaV2ForMaskedLM, dict(legacy=False), "logits"),
}
STRATEGIES = {"weight-only": cq.WeightOnly(), "dynamic": cq.Dynamic(PLAIN), "static": cq.Static()}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("config", [_V3, _ODD], ids=["v3", "keys of every distance"])
def test_heads(tmp_path, exported, config, name):
    """Float32 as transformers, one text at a time; in codes by no more than what codes cost."""
    kind, said, output = HEADS[name]
    reference, model = saved(tmp_path, kind, DebertaV2Config(**config.to_dict() | said))
    tokens, texts = ragged(), ragged((7, 12, 30, 25, 3, 18)) * 2
    wanted = outputs(reference, tokens, output)
    assert error(read(exported(model), tokens, output), wanted) < 1e-4
    for strategy in STRATEGIES.values():
        quantized = cq.quantize(model, strategy, texts if isinstance(strategy, cq.Static) else None)
        found = np.concatenate([row.ravel() for row in read(exported(quantized), tokens, output)])
        theirs = np.concatenate([row.ravel() for row in wanted])
        assert found @ theirs > 0.98 * np.linalg.norm(found) * np.linalg.norm(theirs)


def read(graph, tokens: list, output: str) -> list[np.ndarray]:
    """An output of transformers' name."""
    if output == "start_logits":
        return [row[:, 0] for row in graph.rows(tokens, "logits")]
    if len(graph.session.get_outputs()[0].shape) == 2:
        return list(graph(tokens)["logits"])
    return graph.rows(tokens, output)
