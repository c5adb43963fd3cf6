"""`rank` by language models that judge pairs, against sentence-transformers' CrossEncoder and the words of a model
card."""

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import cq

DOCUMENTS = ["the railway", "b c d", "naïve 🙂", ""]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content }}{% elif m.role == 'query' %}Q:{{ m.content }}"
    "{% elif m.role == 'document' %} D:{{ m.content }} A:{% endif %}{% endfor %}"
)


@pytest.fixture
def judge(byte_tokenizer, tmp_path):
    """(folder of a random Qwen3 with tokens for yes and no, transformers' model, its tokenizer)."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, pad_token="!", eos_token='"')
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.chat_template = TEMPLATE
    sizes = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
    torch.manual_seed(2)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=258, num_key_value_heads=2, max_position_embeddings=600, head_dim=8, **sizes)
    ).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name), 0.3)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model, tokenizer


@pytest.mark.parametrize("both", [True, False])
def test_scores_of_logits(judge, tmp_path, both):
    folder, _, tokenizer = judge
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    score = LogitScore(ids[0], ids[1] if both else None)
    transformer = Transformer(str(folder), transformer_task="text-generation")
    made = CrossEncoder(modules=[transformer, score], prompts={"web": "Judge."}, device="cpu")
    made.default_prompt_name = "web" if both else None
    made.save_pretrained(str(tmp_path / "saved"))
    ours, theirs = cq.load(tmp_path / "saved"), CrossEncoder(str(tmp_path / "saved"), device="cpu")
    for more in ({}, dict(prompt="Is it so?"), dict(prompt_name="web")):
        found, wanted = ours.rank("who?", DOCUMENTS, **more), theirs.rank("who?", DOCUMENTS, **more)
        assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in wanted]
        np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in wanted], atol=1e-5)
    assert ours.rank("who?", DOCUMENTS, batch_size=1, **more) == found
    quantized = cq.quantize(ours, cq.Dynamic())
    cq.save(quantized, tmp_path / "q.safetensors")
    assert cq.load(tmp_path / "q.safetensors").rank("who?", DOCUMENTS) == quantized.rank("who?", DOCUMENTS)


def test_a_qwen3_is_asked_in_the_words_of_its_model_card(judge):
    folder, reference, tokenizer = judge
    found = cq.load(folder).rank("who?", DOCUMENTS, prompt="Find it")
    scores = []
    for document in DOCUMENTS:
        text = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: Find it\n<Query>: who?\n<Document>: {document}"
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        with torch.no_grad():
            logits = reference(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        scores.append(torch.softmax(logits[tokenizer.convert_tokens_to_ids(["no", "yes"])], 0)[1].item())
    assert [row["corpus_id"] for row in found] == np.argsort(-np.array(scores)).tolist()
    np.testing.assert_allclose([row["score"] for row in found], sorted(scores, reverse=True), atol=1e-5)


def test_what_cannot_judge(judge, tiny_lm, tiny_encoder, byte_tokenizer):
    for path in (tiny_lm, tiny_encoder):
        with pytest.raises(cq.UnsupportedError, match="or a language model that judges"):
            cq.load(path).rank("a", ["b"])
        with pytest.raises(cq.CqError, match="only a language model that judges takes a prompt"):
            cq.load(path).rank("a", ["b"], prompt="c")
    for batch_size in (0, -1, 2.0):
        with pytest.raises(cq.CqError, match="batch_size: need a positive whole number"):
            cq.load(judge[0]).rank("a", ["b"], batch_size)
    byte_tokenizer.save(str(judge[0] / "tokenizer.json"))
    (judge[0] / "tokenizer_config.json").unlink()
    with pytest.raises(cq.UnsupportedError, match="no tokens for yes and no"):
        cq.load(judge[0]).rank("a", ["b"])
