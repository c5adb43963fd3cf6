"""What cq writes in compressed-tensors' codes comes back bit for bit: from cq, and from the package; what the format
cannot express is refused with advice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from click.testing import CliRunner
from compressed_tensors import compressors
from compressed_tensors.quantization import QuantizationConfig
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig

import cq
from cq.cli import main
from cq.errors import CqError, UnsupportedError

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=30)
_IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=1)  # some families have higher ones
IDS = [np.arange(2, 14), np.arange(3, 30, 3)]
PER_TOKEN = cq.Scheme(attention="float32")
INT8 = cq.Scheme(activation_dtype="int8", activation_symmetric=True, attention="float32", bias="float32")
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "weight-only affine": cq.WeightOnly(cq.Scheme(weight_symmetric=False)),
    "weight-only per tensor": cq.WeightOnly(cq.Scheme(weight_granularity="per_tensor")),
    "weight-only affine per tensor": cq.WeightOnly(cq.Scheme(weight_symmetric=False, weight_granularity="per_tensor")),
    "weight-only groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=16)),
    "weight-only affine groups": cq.WeightOnly(
        cq.Scheme(weight_symmetric=False, weight_granularity="per_group", group_size=16)
    ),
    "dynamic": cq.Dynamic(PER_TOKEN),
    "dynamic int8": cq.Dynamic(INT8, exclude=("head", "embed.word")),
    "static": cq.Static(cq.Scheme(attention="float32", bias="float32"), smooth=False, correct_bias=False),
    "static int8": cq.Static(INT8, smooth=False, correct_bias=False),
    "mix": cq.Mixed((("layers.0.*", cq.Dynamic(PER_TOKEN)), ("layers.1.ffn.*", cq.WeightOnly()), ("head", None))),
}


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    return cq.load(folder)


_DEBERTA = dict(
    relative_attention=True,
    position_buckets=8,
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p",
    pad_token_id=0,
)
FAMILIES = {
    "bert": ("BertModel", {}),
    "bert-words": ("BertForMaskedLM", {}),
    "bert-classes": ("BertForSequenceClassification", dict(num_labels=3, problem_type="multi_label_classification")),
    "roberta": ("RobertaModel", {}),
    "xlm-roberta-pairs": ("XLMRobertaForSequenceClassification", dict(num_labels=1)),
    "camembert-tokens": ("CamembertForTokenClassification", dict(num_labels=5)),
    "bert-answers": ("BertForQuestionAnswering", {}),
    "distilbert": ("DistilBertModel", {}),
    "llama": ("LlamaForCausalLM", dict(eos_token_id=[2, 7])),
    "llama-tied": ("LlamaForCausalLM", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama-classes": ("LlamaForSequenceClassification", dict(num_labels=3, pad_token_id=0)),
    "llama3": (
        "LlamaForCausalLM",
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=5e4,
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=20,
            )
        ),
    ),
    "mistral": ("MistralForCausalLM", dict(sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=16)),
    "mistral-window": ("MistralForCausalLM", dict(sliding_window=7)),
    "qwen2-window": ("Qwen2ForCausalLM", dict(use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "electra": ("ElectraModel", dict(embedding_size=20)),
    "electra-classes": ("ElectraForSequenceClassification", dict(embedding_size=32, num_labels=3)),
    "mpnet": ("MPNetModel", {}),
    "mpnet-tokens": ("MPNetForTokenClassification", dict(num_labels=3)),
    "deberta": ("DebertaV2Model", _DEBERTA),
    "deberta-words": ("DebertaV2ForMaskedLM", _DEBERTA),
    "deberta-classes": ("DebertaV2ForSequenceClassification", _DEBERTA | dict(num_labels=3)),
    "deberta-convolution": ("DebertaV2Model", _DEBERTA | dict(conv_kernel_size=3, conv_act="gelu")),
    "deberta-queries": ("DebertaV2Model", _DEBERTA | dict(pos_att_type=["p2c"], share_att_key=False)),
    "deberta-absolute": ("DebertaV2Model", dict(relative_attention=False, pos_att_type=["c2p"], pad_token_id=0)),
    "t5": ("T5EncoderModel", {}),
    "t5-gated": ("T5EncoderModel", dict(feed_forward_proj="gated-gelu", relative_attention_num_buckets=8)),
    "granite": (
        "GraniteForCausalLM",
        dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.25),
    ),
    "smollm3": ("SmolLM3ForCausalLM", dict(no_rope_layer_interval=2, attention_bias=True)),
    "smollm3-window": (
        "SmolLM3ForCausalLM",
        dict(no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=7, tie_word_embeddings=True),
    ),
    "olmo2": ("Olmo2ForCausalLM", dict(attention_bias=True)),
    "olmo3": ("Olmo3ForCausalLM", dict(sliding_window=7, layer_types=["sliding_attention", "full_attention"])),
    "olmo3-far": ("Olmo3ForCausalLM", dict(sliding_window=7, layer_types=["full_attention"] * 2)),
    "olmo3-stretched": (
        "Olmo3ForCausalLM",
        dict(
            sliding_window=7,
            layer_types=["full_attention", "sliding_attention"],
            rope_scaling=dict(rope_type="linear", factor=4.0),
        ),
    ),
}


_REFUSED = {"deberta-new-words": ("DebertaV2ForMaskedLM", _DEBERTA | dict(legacy=False))}


def save(family, folder):
    name, more = (FAMILIES | _REFUSED)[family]
    kind = getattr(transformers, name)
    own = dict(num_key_value_heads=2) if hasattr(kind.config_class(), "rms_norm_eps") else {}
    if family == "distilbert":
        config = kind.config_class(
            vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=30
        )
    elif family.startswith("t5"):
        config = kind.config_class(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **more)
    else:
        config = kind.config_class(**SIZES | _IDS | own | more, intermediate_size=48)
    torch.manual_seed(4)
    kind(config).save_pretrained(folder)


def results(model):
    return model.logits(IDS) if model.config.causal and model.config.lm_head else model.forward(IDS)


def quantized(model, name):
    strategy = STRATEGIES[name]
    return cq.quantize(model, strategy, [IDS] * 2 if isinstance(strategy, cq.Static) else None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_folder_comes_back_bit_for_bit(model, name, tmp_path):
    before = quantized(model, name)
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    after = cq.load(tmp_path / "out")
    for (layer, ours), (_, theirs) in zip(before.linears(), after.linears()):
        assert theirs.runs_in == ours.runs_in, layer
        if ours.runs_in != "float32":
            assert (theirs.weight.unpack() == ours.weight.unpack()).all()
            assert (theirs.weight.scales == ours.weight.scales).all()
            zeros = [0 if w.zero_points is None else w.zero_points for w in (ours.weight, theirs.weight)]
            assert np.array_equal(*np.broadcast_arrays(*zeros))
        if ours.runs_in == "static":
            shift = 128 if ours.input_form.dtype == "uint8" else 0
            assert theirs.input_form.scale == ours.input_form.scale
            assert theirs.input_form.zero_point == ours.input_form.zero_point - shift
    if name != "static int8":  # whose codes end at -127 in cq and at -128 in the format
        assert all(map(np.array_equal, results(before), results(after)))
    assert not list(tmp_path.glob(".cq-*"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_package_reads_the_same_codes_and_scales(model, name, tmp_path):
    """What its decompressors make of the file is what cq's codes stand for, and its compressors make the file again."""
    before = quantized(model, name)
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    tensors = {key: torch.from_numpy(array) for key, array in load_file(tmp_path / "out" / "model.safetensors").items()}
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig(**values)
    found = {}
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        module = key.removesuffix(".weight_scale")
        schemes = config.config_groups.values()
        scheme = next(s for s in schemes if module in s.targets or s.targets == ["Linear"])
        parts = {k.rpartition(".")[2]: t for k, t in tensors.items() if k.rpartition(".")[0] == module}
        parts.pop("bias", None)
        compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
        whole = compressor.decompress(parts, scheme)
        found[module] = whole["weight"].numpy()
        again = compressor.compress(whole, scheme)
        assert set(again) == set(parts) and all(torch.equal(again[k], parts[k]) for k in parts), module
    coded = [layer.weight for _, layer in before.linears() if layer.runs_in != "float32"]
    for ours, theirs in zip(sorted(map(_meaning, coded), key=_order), sorted(found.values(), key=_order), strict=True):
        assert (ours == theirs).all()


def _meaning(weight):
    k, groups = weight.k, len(weight.scales)
    scale = np.repeat(weight.scales, -(-k // groups), 0)[:k]
    zero = 0 if weight.zero_points is None else np.repeat(weight.zero_points, -(-k // groups), 0)[:k]
    return ((weight.unpack() - np.float32(zero)) * scale).T


def _order(array):
    return array.shape, float(array[0, 0])


@pytest.mark.parametrize("family", ["llama", "smollm3-window", "deberta", "deberta-convolution", "mpnet", "t5-gated"])
def test_transformers_runs_the_folder(tmp_path, family):
    """By the formulas of the package, which for static codes are cq's."""
    save(family, tmp_path / "in")
    before = quantized(cq.load(tmp_path / "in"), "static")
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    reference = getattr(transformers, FAMILIES[family][0]).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        wanted = reference(torch.tensor(IDS[0][None]))[0][0].numpy()
    assert np.abs(results(before)[0] - wanted).max() < 1e-5


def test_a_head_that_has_no_name_is_refused(tmp_path):
    """DeBERTa's younger masked language model reads the word table itself."""
    save("deberta-new-words", tmp_path / "in")
    model = cq.quantize(cq.load(tmp_path / "in"), cq.WeightOnly())
    with pytest.raises(UnsupportedError, match="head.weight has no name in the files of deberta-v2-new models"):
        cq.export(model, tmp_path / "out", format="compressed-tensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_written_as_transformers_names_them(family, tmp_path):
    save(family, tmp_path / "in")
    before = cq.load(tmp_path / "in")
    cq.export(cq.quantize(before, cq.WeightOnly()), tmp_path / "out", format="compressed-tensors")
    after = cq.load(tmp_path / "out")
    assert after.config.to_dict() == before.config.to_dict() | dict(tied=False)
    assert all(map(np.array_equal, cq.quantize(before, cq.WeightOnly()).forward(IDS), after.forward(IDS)))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    modules = dict(getattr(transformers, config.architectures[0])(config).named_modules())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name.rpartition(".")[0] for name in tensors} <= set(modules)
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    left = {name for name in linear if f"{name}.weight_packed" not in tensors}
    beside = {name for name in linear if name.endswith(("pos_key_proj", "pos_query_proj"))}  # no layers in cq
    assert left == beside | ({"pooler.dense"} & linear if after.config.classifier is None else set())


def sentence_encoder(folder):
    """With every setting of its folder."""
    save("bert", folder)
    plain = cq.load(folder)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    more = dict(pooling=("cls", "mean"), normalize=True, max_length=9, prompts={"query": "a: "}, default_prompt="query")
    return cq.Transformer(replace(plain.config, **more), plain.weights(), tokenizer)


def test_a_sentence_encoder_keeps_its_files(tmp_path):
    before = cq.quantize(sentence_encoder(tmp_path / "in"), cq.Dynamic(PER_TOKEN))
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    assert np.array_equal(before.embed(["a b", "c"]), cq.load(tmp_path / "out").embed(["a b", "c"]))


@pytest.mark.parametrize("name", ["weight-only", "static"])
def test_sentence_transformers_runs_the_folder(tmp_path, name):
    """Once its model was called, as the page says; until then its layers hold codes."""
    before = quantized(sentence_encoder(tmp_path / "in"), name)
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    encoder[0].model(**encoder[0].preprocess(["a text"]))
    assert np.abs(encoder.encode(["a b", "c"]) - before.embed(["a b", "c"])).max() < 1e-5


REFUSED = {
    "float32": (None, "this model is float32; quantize it first"),
    "attention": (cq.Dynamic(), r"layers.0.attention computes in int8, .* cq.Scheme\(attention='float32'\)"),
    "smoothed": (cq.Static(PER_TOKEN), r"reads codes with a scale for each feature, .* smooth=False"),
    "corrected": (
        cq.Static(PER_TOKEN, smooth=False),
        "has a bias, which mistral models have not there; .*correct_bias",
    ),
    "residual": (cq.Static(PER_TOKEN, smooth=False, correct_bias=False, residual="int8"), "residual stream is in int8"),
    "groups": (
        cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=20)),
        "groups of 20 do not divide its 32 inputs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_express_is_refused_with_advice(name, tmp_path):
    save("mistral", tmp_path / "in")
    strategy, words = REFUSED[name]
    model = cq.load(tmp_path / "in")
    if strategy is not None:
        model = cq.quantize(model, strategy, [IDS] if isinstance(strategy, cq.Static) else None)
    with pytest.raises(UnsupportedError, match=words):
        cq.export(model, tmp_path / "out", format="compressed-tensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_the_door(model, tmp_path):
    before = quantized(model, "weight-only")
    with pytest.raises(CqError, match="format: wanted 'onnx' or 'compressed-tensors', got 'gguf'"):
        cq.export(before, tmp_path / "out", format="gguf")
    with pytest.raises(CqError, match="ends in .onnx; for a folder, format='compressed-tensors'"):
        cq.export(before, tmp_path / "out")
    (tmp_path / "out").mkdir()
    cq.export(before, tmp_path / "out", format="compressed-tensors")
    with pytest.raises(CqError, match="is not an empty folder"):
        cq.export(before, tmp_path / "out", format="compressed-tensors")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        cq.export(before, tmp_path / "none" / "out", format="compressed-tensors")


def test_the_command(model, tmp_path):
    cq.save(quantized(model, "dynamic"), tmp_path / "m.safetensors")
    arguments = ["export", str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--format", "compressed-tensors"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "out: " in result.stdout and "MB" in result.stdout
    assert cq.load(tmp_path / "out").strategy.name == "dynamic"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0 and "is not an empty folder" in result.stderr
