"""CTranslate2: int8 with its scales found at inference. Times nothing."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable

import numpy as np

import cq

HAVE = all(importlib.util.find_spec(name) for name in ("ctranslate2", "transformers"))
HELD_BY = "CT2_FORCE_CPU_ISA"
if HAVE:
    # Bound at once, and before torch makes the libgomp that it shares with cq visible to all: CTranslate2 would use
    # that one instead of its own, and with its workers counted there cq's and torch's threads find more of them than
    # cores and fall asleep at once.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW)
    # read when it is loaded: left alone it takes AVX2 on AMD, 115 ms against 125
    if "avx512vnni" in cq.info()["isa_available"]:
        os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
    import ctranslate2

    sys.setdlopenflags(flags)


def language_models(file, scratch, threads: int) -> dict:
    """int8 made by CTranslate2 from the file's float32 weights."""
    from . import LanguageModel

    spec, folder = _llama(file), scratch / "ctranslate2"
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir()
    spec.save(str(folder))
    ready = ctranslate2.Generator(str(folder), "cpu", compute_type="int8", intra_threads=threads, inter_threads=1)

    def logits(ids: np.ndarray) -> np.ndarray:
        return np.asarray(ready.forward_batch([ids.tolist()], return_log_probs=False))[0]

    def generate(ids: np.ndarray, count: int) -> Callable:
        prompt, length = [list(map(str, ids.tolist()))], {"max_length": count, "min_length": count}
        return lambda: ready.generate_batch(prompt, **length, include_prompt_in_result=False)[0].sequences_ids[0]

    prefill = lambda ids: lambda call=generate(ids, 1): call()[0]
    return {"CTranslate2 int8": LanguageModel(logits, prefill, generate, (folder / "model.bin").stat().st_size)}


def _llama(file):
    """The model as CTranslate2 describes one, its tokens named by their ids."""
    from ctranslate2.specs import common_spec, transformer_spec

    from cq.formats.gguf import read_gguf

    c, weights, _ = read_gguf(file)
    weights = {name: np.asarray(array) for name, array in weights.items()}
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        c.num_layers,
        c.num_heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=c.rope_theta,
        num_heads_kv=c.num_kv_heads,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = weights["embed.word"]
    decoder.layer_norm.gamma = weights["final_norm.weight"]
    for i, layer in enumerate(decoder.layer):
        part = {
            name: weights[f"layers.{i}.{name}.weight"]
            for name in (
                "attention.query",
                "attention.key",
                "attention.value",
                "attention.output",
                "ffn.gate",
                "ffn.up",
                "ffn.down",
                "attention_norm",
                "ffn_norm",
            )
        }
        layer.self_attention.linear[0].weight = np.concatenate(
            [part[f"attention.{name}"] for name in ("query", "key", "value")]
        )
        layer.self_attention.linear[1].weight = part["attention.output"]
        layer.self_attention.layer_norm.gamma, layer.ffn.layer_norm.gamma = part["attention_norm"], part["ffn_norm"]
        layer.ffn.linear_0.weight, layer.ffn.linear_0_noact.weight = part["ffn.gate"], part["ffn.up"]
        layer.ffn.linear_1.weight = part["ffn.down"]
    names = [str(i) for i in range(c.vocab_size)]
    spec.register_vocabulary(names)
    spec.config.unk_token, spec.config.bos_token = names[0], names[c.bos_token_id]
    spec.config.eos_token = names[c.eos_token_ids[0]]
    spec.config.layer_norm_epsilon = c.norm_eps
    return spec


def encoders(source, threads: int) -> dict[str, Callable]:
    """int8. It computes no padding in linear layers: it takes the lengths and leaves the rest out."""
    folder = source.scratch / "ctranslate2"
    logging.disable(logging.WARNING)
    ctranslate2.converters.TransformersConverter(str(source.folder)).convert(str(folder))
    logging.disable(logging.NOTSET)
    ready = ctranslate2.Encoder(str(folder), "cpu", compute_type="int8", intra_threads=threads, inter_threads=1)

    def prepare(ids: np.ndarray, mask: np.ndarray, often: bool) -> Callable:
        tokens, lengths = (ctranslate2.StorageView.from_array(a.astype(np.int32)) for a in (ids, mask.sum(1)))
        return lambda: np.asarray(ready.forward_batch(tokens, lengths).last_hidden_state)

    return {"CTranslate2 int8": prepare}
