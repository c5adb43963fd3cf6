"""SmolLM2-135M-Instruct from its GGUF file: its tokenizer's ids, and its perplexity on real text."""

import numpy as np
import pytest

import cq
from cq.report import metrics
from cq.report.samples import SHIPPED, read

TEXTS = [
    "The quick brown fox",
    " it's  2024 : he'll pay $1,999.50\n\n\tdef f(x):",
    "naïve café — 日本語 🙂",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|><|im_end|> x",
]


@pytest.fixture(scope="module")
def model(smollm_file):
    return cq.load(smollm_file)


def test_configuration(model):
    c = model.config
    assert (c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim) == (30, 576, 9, 3, 64)
    assert (c.vocab_size, c.max_positions, c.rope_theta, c.tied) == (49152, 8192, 1e5, True)
    assert (c.bos_token_id, c.eos_token_ids) == (1, (2, 0)) and "<|im_start|>" in c.chat_template


def test_texts_come_back_and_numbers_digit_by_digit(model):
    for text in TEXTS:
        assert model.tokenizer.decode(model.tokenize(text), skip_special_tokens=False) == text
    assert len(model.tokenize("2024")) == 4
    assert list(model.tokenize("<|endoftext|><|im_start|><|im_end|>")) == [0, 1, 2]


def test_perplexity_of_verses(model, tmp_path):
    """With rows of queries and keys left in llama.cpp's order, or another rotary base, it would be far from this."""
    (tmp_path / "some.txt").write_text((SHIPPED / "evaluation.txt").read_text()[:9000])
    samples = read(tmp_path / "some.txt", model)
    assert {len(ids) for ids in samples} == {512}
    parts = [ids[:160] for ids in samples.tokens[:2]]
    losses = np.concatenate([metrics.token_nll(scores, ids) for scores, ids in zip(model.logits(parts), parts)])
    assert abs(metrics.perplexity(losses) / 72.570 - 1) < 1e-4  # 72.5698 by transformers


def test_it_answers_with_what_it_knows(model):
    """Greedy, through the template that the file brings; in int8 with int8 keys and values."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answers = [cq.quantize(model, cq.Dynamic()).generate(question, 20), model.generate(question, 20)]
    assert all("Paris" in answer for answer in answers)
