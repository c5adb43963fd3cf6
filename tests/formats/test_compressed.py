"""compressed-tensors in and out: a checkpoint as llm-compressor writes it gives the logits of its formula, what cq
writes comes back bit for bit, from the package and from cq, and what cannot be honoured is refused by name."""

import json
import re
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import cq
from cq.errors import FormatError, UnsupportedError
from cq.formats.patterns import Matcher

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=30)
IDS = np.arange(12) * 3 % 40
TOKEN = dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
TENSOR = TOKEN | dict(strategy="tensor", dynamic=False)
CHANNEL = TENSOR | dict(strategy="channel")
GROUP = TENSOR | dict(strategy="group", group_size=16)


# --- a checkpoint by hand -------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """A linear layer by the formula of compressed-tensors: codes of the weight's extremes, of the input's extremes or
    at given parameters, and what they stand for multiplied. Dynamic symmetric scales are absmax / 127, as vLLM has
    them. observed: None, or the input's (lowest, highest)."""

    def __init__(self, linear, weights, activations, observed=None):
        super().__init__()
        self.args, self.bias, w = activations, linear.bias, linear.weight.detach()
        self.parts, rows = {}, {"tensor": w.reshape(1, -1), "channel": w}.get(weights["strategy"])
        rows = w.reshape(-1, weights["group_size"]) if rows is None else rows
        scale, zero = self.parameters(rows.amin(1), rows.amax(1), weights["symmetric"])
        self.codes = self.code(rows, scale[:, None], zero[:, None]).reshape(w.shape).to(torch.int8)
        shape = (1,) if weights["strategy"] == "tensor" else (len(w), -1)
        self.parts |= {"weight_scale": scale.reshape(shape), "weight_zero_point": zero.reshape(shape).to(torch.int8)}
        spread = scale[:, None].expand(rows.shape).reshape(w.shape), zero[:, None].expand(rows.shape).reshape(w.shape)
        self.weight = ((self.codes - spread[1]) * spread[0]).double()
        if observed is not None:
            scale, zero = self.parameters(*map(torch.tensor, observed), activations["symmetric"])
            self.parts |= {"input_scale": scale[None], "input_zero_point": zero[None].to(torch.int8)}

    @staticmethod
    def parameters(lo, hi, symmetric, steps=127.5):
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        if symmetric:
            return torch.maximum(-lo, hi) / steps, torch.zeros_like(lo)
        scale = (hi - lo) / 255
        return scale, (-128 - lo / scale).round().clamp(-128, 127)

    @staticmethod
    def code(x, scale, zero):
        return (x / scale + zero).round().clamp(-128, 127)

    def forward(self, x):
        if self.args is not None:
            if self.args["dynamic"]:
                scale, zero = self.parameters(x.amin(-1, True), x.amax(-1, True), self.args["symmetric"], 127)
            else:
                scale, zero = self.parts["input_scale"].double(), self.parts["input_zero_point"].double()
            x = (self.code(x, scale, zero) - zero) * scale
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def tensors(self, packed, symmetric, dtype):
        found = {"weight": self.codes} | self.parts
        if packed:
            n, k = self.codes.shape
            found = found | {"weight_packed": in_words(self.codes), "weight_shape": torch.tensor([n, k])}
            del found["weight"]
        if symmetric:
            del found["weight_zero_point"]
        elif packed:
            found["weight_zero_point"] = in_words(found["weight_zero_point"].T).T.contiguous()
        if self.args is None or self.args["symmetric"]:
            found.pop("input_zero_point", None)
        return {name: t.to(dtype) if name.endswith("scale") else t for name, t in found.items()}


def in_words(codes):
    """int8 (rows, n) → int32 (rows, ceil(n / 4)): four codes with 128 added, the first in the lowest byte."""
    padded = torch.nn.functional.pad(codes.long() + 128, (0, -codes.shape[1] % 4)).reshape(len(codes), -1, 4)
    return (padded << torch.tensor([0, 8, 16, 24])).sum(-1).to(torch.int32)


def checkpoint(folder, weights, activations=None, packed=False, dtype=torch.float32, seed=1):
    """Writes a small Llama as llm-compressor would, and gives the model of its formula."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48)).eval()
    folder.mkdir(exist_ok=True)
    seen = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    if activations is not None and not activations["dynamic"]:
        for name, m in layers.items():
            hook = lambda _, x, y, name=name: seen.update({name: (x[0].min().item() / 2, x[0].max().item())})
            m.register_forward_hook(hook)
        model(torch.tensor(IDS[None]))
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    for name, m in layers.items():
        layer = Layer(m, weights, activations, seen.get(name))
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{leaf}": t for leaf, t in layer.tensors(packed, weights["symmetric"], dtype).items()}
        scale = layer.parts["weight_scale"].to(dtype).float()
        layer.weight *= (scale / layer.parts["weight_scale"]).reshape(-1, 1).double() if dtype != torch.float32 else 1
        model.set_submodule(name, layer)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    group = dict(targets=["Linear"], weights=weights, input_activations=activations, output_activations=None)
    quantization = dict(
        quant_method="compressed-tensors",
        version="0.20.0",
        format="pack-quantized" if packed else "int-quantized",
        quantization_status="compressed",
        global_compression_ratio=None,
        kv_cache_scheme=None,
        sparsity_config={},
        transform_config={},
        ignore=["lm_head"],
        config_groups={"group_0": group},
    )
    values = model.config.to_dict() | dict(architectures=["LlamaForCausalLM"], quantization_config=quantization)
    (folder / "config.json").write_text(json.dumps(values))
    return model.double()


AFFINE = dict(symmetric=False)
WRITTEN = {
    "W8A8": (CHANNEL, TOKEN),
    "W8A8 affine": (CHANNEL, TOKEN | AFFINE),
    "W8A8 affine weights": (CHANNEL | AFFINE, TOKEN),
    "W8A8 per tensor": (TENSOR, TOKEN),
    "W8A8 static": (CHANNEL, TENSOR),
    "W8A8 static affine": (CHANNEL, TENSOR | AFFINE),
    "W8A16": (CHANNEL, None, True),
    "W8A16 unpacked": (CHANNEL, None),
    "W8A16 affine": (CHANNEL | AFFINE, None, True),
    "W8A16 groups": (GROUP, None, True),
    "W8A16 groups affine": (GROUP | AFFINE, None, True),
    "W8A16 bfloat16": (CHANNEL, None, True, torch.bfloat16),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_checkpoint_gives_the_logits_of_its_formula(tmp_path, name):
    formula = checkpoint(tmp_path, *WRITTEN[name])
    model = cq.load(tmp_path)
    with torch.no_grad():
        wanted = formula(torch.tensor(IDS[None])).logits[0].numpy()
    assert np.abs(model.logits([IDS])[0] - wanted).max() < 1e-5
    kind = cq.WeightOnly if "W8A16" in name else cq.Static if "static" in name else cq.Dynamic
    assert isinstance(model.strategy, kind)
    rows = {row.name: row for row in model.coverage()}
    assert rows["head"].reason == "left in float32 by the checkpoint: ignore 'lm_head'"
    assert rows["layers.1.attention.scores"].runs_in == "float32"
    assert all(row.runs_in == kind.name for name, row in rows.items() if re.fullmatch(r"layers\..*(key|up|down)", name))


def test_codes_and_scales_are_those_of_the_file(tmp_path):
    checkpoint(tmp_path, CHANNEL, TOKEN)
    file, model = load_file(tmp_path / "model.safetensors"), cq.load(tmp_path)
    layer = dict(model.linears())["layers.1.ffn.down"]
    theirs = "model.layers.1.mlp.down_proj."
    assert (layer.weight.unpack().T == file[theirs + "weight"]).all() and -128 in file[theirs + "weight"]
    assert (layer.weight.scales.T == file[theirs + "weight_scale"]).all()
    cq.save(model, tmp_path / "m.safetensors")
    assert (cq.load(tmp_path / "m.safetensors").logits([IDS])[0] == model.logits([IDS])[0]).all()
    with pytest.raises(UnsupportedError, match="read by cq.load of their folder"):
        cq.load(tmp_path / "model.safetensors")


# --- what cannot be honoured ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("w8a8")
    checkpoint(folder, CHANNEL, TENSOR | AFFINE)
    return folder


def changed(source, folder, change) -> None:
    """A copy whose quantization_config and tensors change(quantization, group, tensors) has changed."""
    values, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    quantization = values["quantization_config"]
    change(quantization, quantization["config_groups"]["group_0"], tensors)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.0.self_attn.q_proj."
UP = "model.layers.0.mlp.up_proj."
BAD = {
    "gptq": (lambda q, g, t: q.update(quant_method="gptq"), "config.json: quantization_config: quant_method 'gptq' is"),
    "no method": (lambda q, g, t: q.pop("quant_method"), "quant_method None is not implemented"),
    "status": (lambda q, g, t: q.update(quantization_status="frozen"), "quantization_status 'frozen' is not"),
    "format": (
        lambda q, g, t: q.update(format="marlin-24"),
        "group_0: format 'marlin-24' is not implemented, only int-",
    ),
    "group format": (lambda q, g, t: g.update(format=["x"]), "group_0: format .'x'. is not implemented"),
    "4 bits": (lambda q, g, t: g["weights"].update(num_bits=4), "group_0.weights: num_bits 4 is not .*, only 8"),
    "float": (
        lambda q, g, t: g["weights"].update(type="float"),
        "weights: type 'float' is not implemented, only 'int'",
    ),
    "block": (
        lambda q, g, t: g["weights"].update(strategy="block"),
        "strategy 'block' is not implemented, only tensor",
    ),
    "order": (lambda q, g, t: g["weights"].update(actorder="group"), "weights: actorder 'group' is not implemented"),
    "flag": (lambda q, g, t: g["weights"].update(symmetric=1), "weights: symmetric must be true or false, got 1"),
    "unknown": (lambda q, g, t: g["weights"].update(rounding="up"), "weights: 'rounding' 'up' is not implemented"),
    "groups": (
        lambda q, g, t: g["weights"].update(strategy="group", group_size=16),
        "weights: strategy 'group' is not implemented beside input_activations",
    ),
    "token": (
        lambda q, g, t: g["input_activations"].update(strategy="token"),
        "input_activations: strategy 'token' with dynamic False is not implemented",
    ),
    "local": (lambda q, g, t: g["input_activations"].update(dynamic="local"), "dynamic must be true or false"),
    "results": (lambda q, g, t: g.update(output_activations={}), "group_0: output_activations {} is not implemented"),
    "preset": (
        lambda q, g, t: q.update(config_groups={"W8A8": ["Linear"]}),
        "config_groups.W8A8: .* only a group with",
    ),
    "odd name": (lambda q, g, t: q.update(config_groups={"a\nb": 3}), r"config_groups.'a\\nb': 3 is not implemented"),
    "no groups": (lambda q, g, t: q.update(config_groups={}), "config_groups must map names to groups, got {}"),
    "no weights": (lambda q, g, t: g.pop("weights"), "group_0.weights None is not implemented"),
    "targets": (lambda q, g, t: g.update(targets="Linear"), "targets must be a list of names, got 'Linear'"),
    "cache": (lambda q, g, t: q.update(kv_cache_scheme=TENSOR), "kv_cache_scheme {.*} is not implemented"),
    "sparse": (
        lambda q, g, t: q.update(sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config {.*} is not",
    ),
    "look-around": (
        lambda q, g, t: q.update(ignore=["re:(?=lm)"]),
        "'.*lm.*' is no regular expression|not implemented: no",
    ),
    "ignored": (
        lambda q, g, t: q.update(ignore=["re:.*(q_proj|lm_head)$"]),
        "q_proj is in codes, but: left in float32",
    ),
    "not ignored": (lambda q, g, t: q.update(ignore=[]), "lm_head has no codes, though quantization_config says so"),
    "no scale": (lambda q, g, t: t.pop(Q + "weight_scale"), f"no tensor '{Q}weight_scale'"),
    "no input scale": (lambda q, g, t: t.pop(Q + "input_scale"), f"no tensor '{Q}input_scale'"),
    "no zero point": (lambda q, g, t: t.pop(Q + "input_zero_point"), f"no tensor '{Q}input_zero_point'"),
    "no codes": (lambda q, g, t: t.pop(Q + "weight"), "q_proj' has input_scale, .*, but neither an int8 weight nor"),
    "float weight": (lambda q, g, t: t.update({Q + "weight": np.ones((32, 32), "f")}), f"no tensor '{Q}weight'"),
    "scales' shape": (
        lambda q, g, t: t.update({Q + "weight_scale": np.ones((2, 16), "f")}),
        f"{Q}weight_scale: float32 of shape .2, 16., wanted float32 of .32, 1.",
    ),
    "codes' shape": (lambda q, g, t: t.update({Q + "weight": np.ones((32, 3), "b")}), r"has shape \(32, 3\)"),
    "no number": (
        lambda q, g, t: t.update({Q + "weight_scale": np.full((32, 1), np.nan, "f")}),
        f"{Q}weight_scale: not all are positive numbers",
    ),
    "zero scale": (lambda q, g, t: t.update({Q + "input_scale": np.zeros(1, "f")}), f"{Q}input_scale: not all are pos"),
    "zero point": (
        lambda q, g, t: t.update({Q + "weight_zero_point": np.ones((32, 1), "b")}),
        f"{Q}weight_zero_point: .1, 1.*, wanted 0, since its codes are symmetric",
    ),
    "far zero point": (
        lambda q, g, t: t.update({Q + "input_zero_point": np.array([300], "i")}),
        f"{Q}input_zero_point: .300., wanted -128 … 127",
    ),
    "packed": (lambda q, g, t: q.update(format="pack-quantized"), f"no tensor '{Q}weight_packed'"),
    "shape": (
        lambda q, g, t: t.update({Q + "weight_shape": np.array([2**40, 5]), Q + "weight_packed": t.pop(Q + "weight")}),
        "weight_shape .1099511627776, 5. is no shape of a matrix",
    ),
    "another order": (lambda q, g, t: t.update({UP + "weight_g_idx": np.zeros(32, "i")}), f"{UP}weight_g_idx is not"),
    "norm": (
        lambda q, g, t: t.update({"model.norm.weight": np.ones(32, "b"), "model.norm.weight_scale": np.ones(1, "f")}),
        "model.norm is not implemented; codes are read of linear layers",
    ),
    "left over": (
        lambda q, g, t: t.update({Q + "weight_shape": np.array([32, 32])}),
        f"no layer reads: {Q}weight_shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_honoured_is_named_in_a_line(written, tmp_path, name):
    change, words = BAD[name]
    changed(written, tmp_path, change)
    with pytest.raises((FormatError, UnsupportedError), match=words) as error:
        cq.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_groups_go_by_name_then_pattern_then_class(written, tmp_path):
    def change(quantization, group, tensors):
        groups = quantization["config_groups"]
        only = dict(targets=["re:.*up_proj", UP[:-1]], weights=TENSOR | dict(num_bits=8))
        groups |= {"named": group | dict(targets=[UP[:-1]]), "weights": only | dict(targets=[r"re:.*\.1\.mlp\.up_pro"])}
        for leaf in ("input_scale", "input_zero_point"):
            del tensors[f"model.layers.1.mlp.up_proj.{leaf}"]
        tensors["model.layers.1.mlp.up_proj.weight_scale"] = np.array(0.01, "f")

    changed(written, tmp_path, change)
    model = cq.load(tmp_path)
    layers = dict(model.linears())
    assert [layers[f"layers.{i}.ffn.up"].runs_in for i in (0, 1)] == ["static", "weight-only"]
    assert isinstance(model.strategy, cq.Mixed) and np.isfinite(model.logits([IDS])[0]).all()
    cq.save(model, tmp_path / "m.safetensors")
    assert (cq.load(tmp_path / "m.safetensors").logits([IDS])[0] == model.logits([IDS])[0]).all()


def test_words_in_codes(written, tmp_path):
    def change(quantization, group, tensors):
        table = tensors.pop("model.embed_tokens.weight")
        codes = cq.quantize_tensor(table, "int8", True, 0)
        quantization["config_groups"]["words"] = dict(targets=["Embedding"], weights=CHANNEL)
        tensors["model.embed_tokens.weight"] = codes.data
        tensors["model.embed_tokens.weight_scale"] = codes.scale[:, None]

    changed(written, tmp_path, change)
    model = cq.load(tmp_path)
    assert model.embedding.runs_in == "weight-only"
    assert np.abs(model.logits([IDS])[0] - cq.load(written).logits([IDS])[0]).max() < 0.1


PATTERNS = (r".*lm_head", r"a\.b\.[0-9]+\.(q|k|v)_proj$", r"(a|ab)*b$", r"^(?:a|b.c)[^x\d\W]*?\.(\d+)$", r"((a?)?)?b",
            r"a{2,}b", r"(^|a){3}b", r".*\D+", r"(a*)*$")  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_re_does(pattern):
    matches = Matcher("x")
    for name in ("lm_head", "a.b.17.k_proj", "a.b.17.k_projector", "aab", "abab", "b.ca.3", "", "aaab"):
        assert matches(pattern, name) == (re.match(pattern, name) is not None), name


def test_no_pattern_takes_long():
    matches, began = Matcher("x"), time.process_time()
    for pattern in ("(a+)+$", "(((((((a*)*)*)*)*)*)*)*$", "(?:a{1000}){1000}", "a?" * 400 + "a" * 100):
        assert not matches(pattern, "a" * 60 + "!")
    for pattern in ("(" * 400 + "a" + ")?" * 400, "(", r"(a)\1", "(?i)a", "a" * 2000):
        with pytest.raises(UnsupportedError, match="regular expression|not implemented"):
            matches(pattern, "a" * 60)
    with pytest.raises(UnsupportedError, match="takes too long"):
        for _ in range(1000):
            matches(".*" * 400, "a" * 400)
    assert time.process_time() - began < 20
