"""Embeddings beside sentence-transformers' own, from the folders that it writes: prompts, modules, poolings,
lengths."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, Gemma3TextConfig, Gemma3TextModel, PreTrainedTokenizerFast

import cq

TEXTS = ["abc", "a", "cab ba", "  b c ", "abcabcabcabcabcabc"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of transformers: one token for each character, white space included."""
    folder = tmp_path_factory.mktemp("plain")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", " ", ":", "q"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(1)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model = BertModel(BertConfig(vocab_size=10, max_position_embeddings=20, pad_token_id=0, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def saved(plain, folder, *after, pooling="mean", include_prompt=True, **arguments):
    """(the folder as sentence-transformers writes it, its own model)."""
    torch.manual_seed(2)
    transformer = Transformer(str(plain))
    pool = Pooling(16, pooling, include_prompt)
    model = SentenceTransformer(modules=[transformer, pool, *(make() for make in after)], device="cpu", **arguments)
    for module in list(model)[2:]:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    model.save(str(folder))
    return folder, model


def test_embeddinggemma_with_its_modules(plain, tmp_path):
    """Gemma 3 that sees both sides, with windows, two Dense modules without bias, and all strategies' vectors near."""
    shutil.copytree(plain, tmp_path / "gemma")
    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    config = Gemma3TextConfig(
        **sizes,
        vocab_size=10,
        intermediate_size=24,
        sliding_window=6,
        sliding_window_pattern=3,
        query_pre_attn_scalar=8,
        max_position_embeddings=64,
        use_bidirectional_attention=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(1)
    transformer = Gemma3TextModel(config)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    transformer.save_pretrained(tmp_path / "gemma")
    wide = [lambda: Dense(16, 24, bias=False, activation_function=torch.nn.Identity())]
    narrow = [lambda: Dense(24, 16, bias=False, activation_function=torch.nn.Identity()), Normalize]
    folder, reference = saved(tmp_path / "gemma", tmp_path / "folder", *wide, *narrow)
    model = cq.load(folder)
    assert not model.config.causal and model.config.window == 3
    wanted = reference.encode(TEXTS)
    assert_close(model.embed(TEXTS), wanted)
    for strategy in (cq.WeightOnly(), cq.Dynamic(), cq.Static()):
        quantized = cq.quantize(model, strategy, TEXTS if isinstance(strategy, cq.Static) else None)
        assert (quantized.embed(TEXTS) * wanted).sum(1).min() > 0.97


def assert_close(found, wanted) -> None:
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(
    "pooling",
    [
        *("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
        ("cls", "mean"),
        ("mean", "weightedmean", "max"),
    ],
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_poolings_and_prompts(plain, tmp_path, pooling, include_prompt):
    prompts = {"query": "q: ", "long": "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "document": ""}
    folder, reference = saved(plain, tmp_path, pooling=pooling, include_prompt=include_prompt, prompts=prompts)
    model = cq.load(folder)
    assert_close(model.embed(TEXTS), reference.encode(TEXTS))
    assert_close(model.encode(TEXTS, prompt_name="query"), reference.encode(TEXTS, prompt_name="query"))
    assert_close(model.embed(TEXTS, prompt="a "), reference.encode(TEXTS, prompt="a "))
    cq.save(model, tmp_path / "saved.safetensors")
    assert_close(
        cq.load(tmp_path / "saved.safetensors").embed(TEXTS, prompt="a "), reference.encode(TEXTS, prompt="a ")
    )
    with pytest.raises(cq.CqError, match="prompt_name: 'none' is none of"):
        model.embed(TEXTS, prompt_name="none")
    with pytest.raises(cq.CqError, match="prompt: goes before texts"):
        model.embed([[2, 4, 3]], prompt="q")


def test_the_default_prompt(plain, tmp_path):
    folder, reference = saved(plain, tmp_path, prompts={"query": "q: "}, default_prompt_name="query")
    model = cq.load(folder)
    assert_close(model.embed(TEXTS), reference.encode(TEXTS))
    assert_close(model.embed(TEXTS, prompt=""), reference.encode(TEXTS, prompt=""))
    assert np.abs(model.embed(TEXTS) - model.embed(TEXTS, prompt="")).max() > 0.01


@pytest.mark.parametrize(
    "after",
    [
        [Normalize],
        [lambda: Dense(16, 8)],
        [lambda: Dense(16, 24, bias=False, activation_function=torch.nn.Identity()), Normalize],
        [lambda: LayerNorm(16), lambda: Dense(16, 16, activation_function=torch.nn.GELU())],
        [Normalize, lambda: Dense(16, 5, activation_function=torch.nn.Sigmoid()), lambda: LayerNorm(5), Normalize],
        [
            lambda: Dense(16, 5, activation_function=torch.nn.SiLU()),
            lambda: Dense(5, 7, activation_function=torch.nn.ReLU()),
        ],
    ],
)
def test_modules_after_pooling(plain, tmp_path, after):
    folder, reference = saved(plain, tmp_path / "folder", *after)
    model = cq.load(folder)
    assert_close(model.embed(TEXTS), reference.encode(TEXTS))
    assert model.embed([]).shape == (0, reference.encode(TEXTS).shape[1])
    cq.save(model, tmp_path / "float.safetensors")
    assert np.array_equal(cq.load(tmp_path / "float.safetensors").embed(TEXTS), model.embed(TEXTS))
    static = cq.quantize(model, cq.Static(), calibration=TEXTS)
    cq.save(static, tmp_path / "static.safetensors")
    assert np.array_equal(cq.load(tmp_path / "static.safetensors").embed(TEXTS), static.embed(TEXTS))


@pytest.mark.parametrize("dim", [5, 16, 40])
def test_truncated_embeddings(plain, tmp_path, dim):
    folder, reference = saved(plain, tmp_path, Normalize, truncate_dim=dim)
    change(folder / "config_sentence_transformers.json", truncate_dim=dim)
    assert_close(cq.load(folder).embed(TEXTS), reference.encode(TEXTS))


def change(file, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    "version, stripped", [("6.2.0", False), ("5.4.0", False), ("5.3.1", True), ("2.0.0", True), (None, True)]
)
def test_white_space_is_left_out_where_the_writers_version_did_so(plain, tmp_path, version, stripped):
    folder, reference = saved(plain, tmp_path)
    file = folder / "config_sentence_transformers.json"
    if version is None:
        file.unlink()
    else:
        change(file, __version__={"sentence_transformers": version})
    texts = [text.strip() for text in TEXTS] if stripped else TEXTS
    assert_close(cq.load(folder).embed(TEXTS), reference.encode(texts))


def test_a_plain_folder_pools_by_mean(plain):
    assert_close(cq.load(plain).embed(TEXTS), SentenceTransformer(str(plain), device="cpu").encode(TEXTS))


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_where_the_tokenizer_says(plain, tmp_path, side):
    folder, _ = saved(plain, tmp_path)
    change(folder / "tokenizer_config.json", truncation_side=side, model_max_length=9)
    reference = SentenceTransformer(str(folder), device="cpu")
    assert_close(cq.load(folder).embed(TEXTS), reference.encode(TEXTS))


@pytest.mark.parametrize(
    "kind, entries, words",
    [
        ("Dense", {"use_residual": True}, "use_residual True is not implemented"),
        ("Dense", {"activation_function": "os.system"}, "activation 'os.system'"),
        ("Dense", {"activation_function": "torch.nn.Softmax"}, "activation 'torch.nn.Softmax'"),
        ("Dense", {"in_features": 15}, "in_features 15 is not 16"),
        ("Dense", {"out_features": 9}, "dimension 8 is not 9"),
        ("Dense", {"bias": False}, "tensors"),
        ("LayerNorm", {"dimension": 7}, "dimension 7 is not 8"),
        ("Normalize", {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
    ],
)
def test_what_modules_say_otherwise_is_named(plain, tmp_path, kind, entries, words):
    folder, _ = saved(plain, tmp_path, lambda: Dense(16, 8), lambda: LayerNorm(8), Normalize)
    (place,) = [i for i, one in enumerate(("Dense", "LayerNorm", "Normalize"), 2) if one == kind]
    change(folder / f"{place}_{kind}" / "config.json", **entries)
    with pytest.raises(cq.CqError, match=words):
        cq.load(folder)


def test_training_refuses_what_it_does_not_train(plain, tmp_path):
    folder, _ = saved(plain, tmp_path, lambda: Dense(16, 8))
    pairs = [("a", "b", 1.0), ("c", "a b", 0.0)]
    with pytest.raises(cq.UnsupportedError, match="loss: pairs"):
        cq.quantize(cq.load(folder), cq.QAT(steps=1, loss="pairs"), calibration=pairs)
    trained = cq.quantize(cq.load(folder), cq.QAT(steps=1), calibration=TEXTS)
    assert trained.embed(TEXTS).shape == (5, 8)
