"""GGUF files of small random models, laid out as llama.cpp's converter lays out a Hugging Face folder, give the very
bits that the folder gives; names of tensors are those of the gguf package."""

import dataclasses
import json

import gguf
import jina
import numpy as np
import pytest
import torch
import transformers
from families import ODD, SMALL
from safetensors.numpy import load_file

import cq
from cq.errors import FormatError, UnsupportedError

_TIED = dict(tie_word_embeddings=True)
_RMS = dict(rms_norm_eps=2.0**-18)  # which float32 holds
_LAYER = dict(layer_norm_eps=2.0**-18)
_SHORT, _LONG = [1.0, 1.25, 1.5], [1.0, 2.0, 5.0]
_FACTOR = float(np.float32(1.1))
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=_SHORT,
    long_factor=_LONG,
    original_max_position_embeddings=30,
    attention_factor=_FACTOR,
    partial_rotary_factor=0.6,
)
_GEMMA = _TIED | _RMS | dict(head_dim=16, query_pre_attn_scalar=16)
_BERT = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
_BERT_ODD = _BERT | dict(hidden_size=42, num_attention_heads=3, intermediate_size=35)
_T5 = dict(vocab_size=61, d_model=40, d_kv=10, d_ff=36, num_layers=2, num_heads=4, layer_norm_epsilon=2.0**-18)
_T5_ODD = _T5 | dict(d_model=27, d_kv=7, d_ff=31, num_heads=3, relative_attention_num_buckets=8)
_DEFAULT = dict(rope_type="default", rope_theta=1e4)
_MODERN = dict(_BERT, norm_eps=2.0**-18, local_attention=16, num_hidden_layers=5, cls_token_id=1, sep_token_id=2)
_BOTH = dict(use_bidirectional_attention=True)


def _neox(sizes, share, **more):
    kept = {key: value for key, value in sizes.items() if key != "num_key_value_heads"}
    return kept | _LAYER | dict(rope_parameters=_DEFAULT | dict(partial_rotary_factor=share)) | more


# general.architecture, class of transformers, configuration
MODELS = {
    "gemma3": ("gemma3", "Gemma3ForCausalLM", SMALL | _GEMMA | dict(num_hidden_layers=7, sliding_window=13)),
    "gemma3 stretched": (
        "gemma3",
        "Gemma3ForCausalLM",
        ODD
        | _GEMMA
        | dict(head_dim=10, query_pre_attn_scalar=10, sliding_window=13, layer_types=["sliding_attention"] * 3)
        | dict(rope_parameters=dict(full_attention=_DEFAULT | dict(rope_type="linear", factor=8.0)))
        | dict(final_logit_softcapping=3.5),
    ),
    "embeddinggemma": (
        "gemma-embedding",
        "Gemma3TextModel",
        SMALL | _GEMMA | _BOTH | dict(num_hidden_layers=7, sliding_window=13),
    ),
    "phi3": ("phi3", "Phi3ForCausalLM", SMALL | _RMS | dict(sliding_window=20, rope_parameters=_LONGROPE)),
    "phi3 odd": ("phi3", "Phi3ForCausalLM", ODD | _RMS | dict(sliding_window=None)),
    "phi4-mini": (
        "phi3",
        "Phi3ForCausalLM",
        SMALL | _RMS | _TIED | dict(sliding_window=None, rope_parameters=_DEFAULT | dict(partial_rotary_factor=0.8)),
    ),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM", SMALL | _RMS | dict(num_hidden_layers=5)),
    "smollm3 odd": ("smollm3", "SmolLM3ForCausalLM", ODD | _RMS | _TIED | dict(attention_bias=True, mlp_bias=True)),
    "olmo3": ("olmo2", "Olmo3ForCausalLM", SMALL | _RMS | dict(num_hidden_layers=5, sliding_window=19)),
    "olmo3 stretched": (
        "olmo2",
        "Olmo3ForCausalLM",
        ODD
        | _RMS
        | dict(sliding_window=19, layer_types=["full_attention", "sliding_attention", "full_attention"])
        | dict(rope_parameters=dict(rope_type="linear", rope_theta=5e5, factor=8.0)),
    ),
    "neox": ("gptneox", "GPTNeoXForCausalLM", _neox(SMALL, 0.4)),
    "neox odd": ("gptneox", "GPTNeoXForCausalLM", _neox(ODD, 1.0, use_parallel_residual=False)),
    "nomic": ("nomic-bert", "NomicBertModel", _BERT | _LAYER | dict(rope_parameters=_DEFAULT | dict(rope_theta=1e3))),
    "nomic odd": ("nomic-bert", "NomicBertModel", _BERT_ODD | _LAYER),
    "modernbert": ("modern-bert", "ModernBertModel", _MODERN),
    "modernbert silu": (
        "modern-bert",
        "ModernBertModel",
        _MODERN | _BERT_ODD | dict(num_hidden_layers=4, hidden_activation="silu", global_attn_every_n_layers=2),
    ),
    "t5": ("t5encoder", "T5EncoderModel", _T5),
    "t5 gated": ("t5encoder", "T5EncoderModel", _T5_ODD | dict(feed_forward_proj="gated-gelu")),
    "t5 whole": ("t5", "T5ForConditionalGeneration", _T5 | dict(decoder_start_token_id=0)),
    "jina": ("jina-bert-v2", "four heads", {}),
    "jina odd": ("jina-bert-v2", "three heads", {}),
}
DECODERS = [name for name, (_, kind, _) in MODELS.items() if kind.endswith("CausalLM")]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """folder_of(name) → the folder of a random model, made once."""
    found = {}

    def made(name):
        if name not in found:
            found[name] = tmp_path_factory.mktemp("folder")
            _, kind, values = MODELS[name]
            if kind in jina.SIZES:
                jina.made(found[name], kind)
            else:
                saved(found[name], getattr(transformers, kind), values)
        return found[name]

    return made


def saved(folder, kind, values):
    torch.manual_seed(4)
    model = kind(kind.config_class(**values)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name.lower() and name.endswith("weight")), 0.2)
    model.save_pretrained(folder)


def of_config(c: dict, architecture: str) -> dict:
    """The entries that the converter makes of config.json."""
    first = lambda *names: next(c[name] for name in names if name in c)
    entries = {
        "block_count": first("num_hidden_layers", "num_layers"),
        "context_length": c.get("max_position_embeddings", 512),
        "embedding_length": first("hidden_size", "d_model"),
        "feed_forward_length": first("intermediate_size", "d_ff"),
        "attention.head_count": first("num_attention_heads", "num_heads"),
    }
    if "rms_norm_eps" in c or "d_kv" in c:
        entries["attention.layer_norm_rms_epsilon"] = first("rms_norm_eps", "layer_norm_epsilon")
    else:
        entries["attention.layer_norm_epsilon"] = first("layer_norm_eps", "norm_eps", "layer_norm_epsilon")
    if "num_key_value_heads" in c and architecture != "gptneox":
        entries["attention.head_count_kv"] = c["num_key_value_heads"]
    if c.get("head_dim") or "d_kv" in c:
        entries |= dict.fromkeys(("attention.key_length", "attention.value_length"), first("head_dim", "d_kv"))
    return entries | {
        "gemma2": of_gemma3,
        "gemma3": of_gemma3,
        "gemma-embedding": of_gemma3,
        "phi3": of_phi3,
        "smollm3": of_smollm3,
        "olmo2": of_olmo,
        "gptneox": of_neox,
        "modern-bert": of_modern,
        "nomic-bert": lambda c: of_rope(c["rope_parameters"]) | {"attention.causal": False, "pooling_type": 1},
        "jina-bert-v2": lambda c: {"attention.causal": False},
        "t5": lambda c: {"attention.relative_buckets_count": c["relative_attention_num_buckets"]},
        "t5encoder": lambda c: {"attention.relative_buckets_count": c["relative_attention_num_buckets"]},
    }[architecture](c)


def of_rope(rope: dict) -> dict:
    rope = rope.get("full_attention", rope)
    found = {"rope.freq_base": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    return found


def of_gemma3(c: dict) -> dict:
    capped = c.get("final_logit_softcapping")
    window = c["sliding_window"] if not c.get("use_bidirectional_attention") else 13  # as config.json had it
    found = of_rope(c["rope_parameters"]) | {"attention.sliding_window": window}
    return found | ({"final_logit_softcapping": capped} if capped else {})


def of_phi3(c: dict) -> dict:
    rope = c["rope_parameters"]
    found = {
        "rope.freq_base": rope["rope_theta"],
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings", 4096),
        "rope.dimension_count": int(rope["partial_rotary_factor"] * c["hidden_size"]) // c["num_attention_heads"],
        "attention.sliding_window": c["sliding_window"] or 0,
    }
    return found | ({"rope.scaling.attn_factor": rope["attention_factor"]} if "short_factor" in rope else {})


def of_smollm3(c: dict) -> dict:
    dim = c["hidden_size"] // c["num_attention_heads"]
    return of_rope(c["rope_parameters"]) | {"rope.dimension_count": dim, "vocab_size": c["vocab_size"]}


def of_olmo(c: dict) -> dict:
    return of_rope(c["rope_parameters"]) | {
        "attention.sliding_window": c["sliding_window"],
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c["layer_types"]],
    }


def of_neox(c: dict) -> dict:
    share = c["rope_parameters"]["partial_rotary_factor"]
    return {
        "rope.dimension_count": int(share * (c["hidden_size"] // c["num_attention_heads"])),
        "use_parallel_residual": c["use_parallel_residual"],
    }


def of_modern(c: dict) -> dict:
    rope = c["rope_parameters"]
    return {
        "attention.causal": False,
        "attention.sliding_window": c["local_attention"],
        "rope.freq_base": rope["full_attention"]["rope_theta"],
        "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        "rope.scaling.type": "none",
        "hidden_activation": c["hidden_activation"],
        "attention.sliding_window_pattern": 2 if c["hidden_activation"] == "silu" else 3,
    }


def converted(tensors: dict, architecture: str, c: dict) -> dict:
    """Tensors of a folder as the converter changes them, by their names in the folder."""
    found = {}
    heads = c.get("num_attention_heads")
    for name, array in tensors.items():
        if architecture.startswith("gemma"):
            if name == "lm_head.weight":
                continue
            array = array + np.float32(1) if name.endswith("norm.weight") else array
        if architecture == "smollm3" and ".q_proj." in name:
            array = interleaved(array, heads)
        if architecture == "smollm3" and ".k_proj." in name:
            array = interleaved(array, c["num_key_value_heads"])
        if ".query_key_value." in name:
            by_head = array.reshape(heads, 3, -1, *array.shape[1:])
            array = np.concatenate([by_head[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
        for prefix in ("nomic_bert.", "bert."):
            name = name.removeprefix(prefix)
        if name not in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            found[name] = np.ascontiguousarray(array)
    return found


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rows: 0, d/2, 1, d/2 + 1, … within each head."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def add(writer, key: str, value) -> None:
    adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
    adders.get(type(value), writer.add_array)(key, value)


def write(path, folder, architecture: str, change: dict | None = None, extra: dict | None = None, apart=False):
    """The GGUF file of a folder. change: of entries, None: left out; extra: tensors by their names in the file; apart:
    a JinaBERT's gate lies by itself, as earlier converters wrote it."""
    c = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    entries = of_config(c, architecture) | (change or {})
    for key, value in entries.items():
        if value is not None:
            add(writer, f"{architecture}.{key}", value)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, min(entries["block_count"], 70))
    for name, array in converted(load_file(folder / "model.safetensors"), architecture, c).items():
        if apart and "gated_layers" in name:
            gate, up = np.split(array, 2)
            writer.add_tensor(names.get_name(name.replace("gated_layers", "gated_layers_w"), (".weight",)), gate)
            name, array = name.replace("gated_layers", "gated_layers_v"), up
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
    rope = c.get("rope_parameters") or {}
    if "short_factor" in rope:
        for part in ("short", "long"):
            writer.add_tensor(f"rope_factors_{part}.weight", np.array(rope[f"{part}_factor"], np.float32))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ragged():
    return [np.random.default_rng(n).integers(3, 61, n) for n in (1, 17, 90)]


def same(ours, theirs) -> None:
    """The configurations where they say how to compute, and results to the bit."""
    assert np.float32(ours.config.norm_eps) == np.float32(theirs.config.norm_eps)
    files = "pooling normalize max_length max_positions bos_token_id eos_token_ids pad_token_id generation norm_eps"
    said = {key: getattr(ours.config, key) for key in files.split()}
    spelled = {"attention_scale": ours.config.attention_scale} if ours.config.family == "gemma3_text" else {}
    assert ours.config == dataclasses.replace(theirs.config, **said, **spelled)
    assert ours.config.score_scale == theirs.config.score_scale
    run = cq.Transformer.logits if ours.config.lm_head else cq.Transformer.forward
    for a, b in zip(run(ours, ragged()), run(theirs, ragged()), strict=True):
        assert np.array_equal(a, b) and np.abs(a).max() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_results_are_the_bits_of_the_folder(tmp_path, folder_of, name):
    architecture, folder = MODELS[name][0], folder_of(name)
    change = {}
    if name == "gemma3 stretched":  # all of whose layers have a window
        change = {"attention.sliding_window_pattern": 0}
    ours = cq.load(write(tmp_path / "a.gguf", folder, architecture, change))
    same(ours, cq.load(folder))
    if name not in DECODERS:
        assert (ours.config.pooling, ours.config.normalize) == ("mean", True)


@pytest.mark.parametrize("name", ["phi3", "gemma3", "neox", "modernbert", "t5 gated", "jina"])
def test_quantized_models_are_those_of_the_folder(tmp_path, folder_of, name):
    ours = cq.load(write(tmp_path / "a.gguf", folder_of(name), MODELS[name][0]))
    both = [cq.quantize(model, cq.Dynamic()).forward(ragged()) for model in (ours, cq.load(folder_of(name)))]
    assert all(map(np.array_equal, *both))


def test_a_gate_by_itself(tmp_path, folder_of):
    folder = folder_of("jina odd")
    same(cq.load(write(tmp_path / "a.gguf", folder, "jina-bert-v2", apart=True)), cq.load(folder))


@pytest.mark.parametrize("name", ["smollm3 odd", "phi3", "neox"])
def test_queries_keys_and_values_apart_or_joined(tmp_path, folder_of, name):
    """llama.cpp reads either."""
    folder, architecture = folder_of(name), MODELS[name][0]
    reader = gguf.GGUFReader(write(tmp_path / "a.gguf", folder, architecture))
    c = json.loads((folder / "config.json").read_text())
    widths = [c.get(key) or c["num_attention_heads"] for key in ("num_attention_heads", *["num_key_value_heads"] * 2)]
    dim, tensors = c["hidden_size"] // c["num_attention_heads"], {}
    parts = {tensor.name: tensor.data for tensor in reader.tensors}
    for key, array in parts.items():
        if ".attn_qkv." in key:
            pieces = np.split(array, np.cumsum([dim * n for n in widths])[:2])
            tensors |= {key.replace("qkv", part): piece for part, piece in zip("qkv", pieces)}
        elif ".attn_q." in key:
            tensors[key.replace("attn_q", "attn_qkv")] = np.concatenate(
                [parts[key.replace("attn_q", f"attn_{part}")] for part in "qkv"]
            )
        elif ".attn_k." not in key and ".attn_v." not in key:
            tensors[key] = array
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", architecture)
    for key, value in of_config(c, architecture).items():
        add(writer, f"{architecture}.{key}", value)
    for key, array in tensors.items():
        writer.add_tensor(key, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same(cq.load(tmp_path / "b.gguf"), cq.load(folder))


def test_dense_layers_after_pooling(tmp_path, folder_of):
    rng = np.random.default_rng(5)
    up, down = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((50, 40), (40, 50)))
    extra = {"dense_2.weight": up, "dense_3.weight": down}
    sizes = {"dense_2_feat_in": 40, "dense_2_feat_out": 50, "dense_3_feat_in": 50, "dense_3_feat_out": 40}
    folder = folder_of("embeddinggemma")
    model = cq.load(write(tmp_path / "a.gguf", folder, "gemma-embedding", sizes, extra))
    for ids in ragged():
        wanted = down @ (up @ model.forward([ids])[0].mean(0, dtype=np.float64))
        np.testing.assert_allclose(model.embed([ids])[0], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_a_language_model_that_pools(tmp_path, folder_of):
    """As embedding models made of decoders do."""
    model = cq.load(write(tmp_path / "a.gguf", folder_of("smollm3"), "smollm3", {"pooling_type": 3}))
    last = model.forward(ragged()[1:2])[0][-1].astype(np.float64)
    np.testing.assert_allclose(model.embed(ragged()[1:2])[0], last / np.linalg.norm(last), atol=1e-5)


WINDOWS = {  # architecture's model, change of entries → the window, which layers have it, theta of these
    "gemma3": ({}, 13, (True,) * 5 + (False, True), 1e4),
    "gemma3 of another period": ({"attention.sliding_window_pattern": 2}, 13, (True, False) * 3 + (True,), 1e4),
    "gemma3 all": ({"attention.sliding_window_pattern": 0}, 13, (), 1e4),
    "gemma3 none": ({"attention.sliding_window_pattern": 1}, None, (), None),
    "gemma3 without": ({"attention.sliding_window": None}, None, (), None),
    "gemma3 theta": ({"rope.freq_base_swa": 500.0}, 13, (True,) * 5 + (False, True), 500.0),
    "embeddinggemma": ({}, 6, (True,) * 5 + (False, True), 1e4),
    "modernbert": ({"attention.sliding_window_pattern": None}, 8, (False, True, True, False, True), 1e4),
    "modernbert by layer": (
        {"attention.sliding_window_pattern": [True, False, False, True, True]},
        8,
        (True, False, False, True, True),
        1e4,
    ),
    "olmo3": ({"attention.sliding_window_pattern": None}, 19, (True, True, True, False, True), 5e5),
    "olmo3 without": ({"attention.sliding_window": 0}, None, (), None),
    "phi3": ({}, 20, (), None),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_those_that_the_file_says(tmp_path, folder_of, name):
    kind, (change, window, local, theta) = name.split()[0], WINDOWS[name]
    config = cq.load(write(tmp_path / "a.gguf", folder_of(kind), MODELS[kind][0], change)).config
    assert (config.window, config.local, config.local_rope_theta) == (window, local, theta)


@pytest.mark.parametrize("architecture, layers, by_width", [("gemma2", 46, True), ("gemma3", 62, True)])
def test_the_largest_gemma_has_a_scale_of_its_own(tmp_path, architecture, layers, by_width):
    kind = {"gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}[architecture]
    values = dict(vocab_size=5, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=4)
    saved(tmp_path, getattr(transformers, kind), values | dict(num_hidden_layers=layers, head_dim=4))
    config = json.loads((tmp_path / "config.json").read_text())
    assert cq.load(write(tmp_path / "a.gguf", tmp_path, architecture)).config.score_scale == 1 / np.sqrt(8)
    assert config["num_hidden_layers"] == layers


_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
BAD = {  # the model, change of entries, tensors beside it, words of the error
    "one factor": ("phi3 odd", {}, {_FACTORS[1]: np.ones(7, np.float32)}, "without rope_factors_short"),
    "few factors": ("phi3 odd", {}, dict.fromkeys(_FACTORS, np.ones(3, np.float32)), r"shape \(3,\); wanted \(7,\)"),
    "no factors": ("phi3 odd", {}, dict.fromkeys(_FACTORS, np.zeros(7, np.float32)), "must be positive numbers"),
    "yarn": ("phi3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, {}, "'yarn' with factor 2 beside"),
    "factor": ("phi3", {"rope.scaling.factor": 2.0}, {}, "'linear' with factor 2 beside rope_factors_short"),
    "all turned": ("phi3", {"rope.dimension_count": 10}, {}, "rope_factors_short.weight has shape"),
    "odd": ("phi3 odd", {"rope.dimension_count": 7}, {}, "need an even number of features"),
    "longrope": ("smollm3", {"rope.scaling.type": "longrope"}, {}, "type 'longrope' without rope_factors_short"),
    "turned": ("smollm3", {"rope.dimension_count": 8}, {}, "rope.dimension_count 8 is not implemented"),
    "window": ("smollm3", {"attention.sliding_window": 9}, {}, "sliding_window 9 is not implemented"),
    "parallel": ("smollm3", {"use_parallel_residual": True}, {}, "use_parallel_residual True is not implemented"),
    "no flag": ("neox", {"use_parallel_residual": 2}, {}, "use_parallel_residual must be true or false"),
    "pattern": ("gemma3", {"attention.sliding_window_pattern": [True, False]}, {}, "for each of 7 layers"),
    "capped": ("gemma3", {"attn_logit_softcapping": 5.0}, {}, "attn_logit_softcapping 5.0 is not implemented"),
    "layers": ("gemma3", {"block_count": 2**20}, {}, "block_count: 1048576 layers; at most"),
    "narrow": ("embeddinggemma", {"attention.sliding_window": 1}, {}, "only 2 and more"),
    "causal": ("embeddinggemma", {"attention.causal": True}, {}, "attention.causal True is not implemented"),
    "activation": ("modernbert", {"hidden_activation": "mish"}, {}, "hidden_activation 'mish' is not implemented"),
    "rank": ("modernbert", {"pooling_type": 4}, {}, "pooling_type 4 is not implemented"),
    "buckets": ("t5", {"attention.relative_buckets_count": None}, {}, "relative_buckets_count .*is missing"),
    "bias": ("jina", {"attention.max_alibi_bias": 4.0}, {}, "max_alibi_bias 4.0 is not implemented"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_implemented_is_refused(tmp_path, folder_of, case):
    name, change, extra, words = BAD[case]
    path = write(tmp_path / "a.gguf", folder_of(name), MODELS[name][0], change, extra)
    with pytest.raises((UnsupportedError, FormatError), match=words):
        cq.load(path)
