"""Models that do not fit in memory as float32: weights in several files and in 16 bits, read one at a time; checkpoints
packed when they are first used; runs that are killed."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
import transformers

import cq
from cq.formats.huggingface import read_settings
from cq.formats.names import foreign
from cq.formats.tensors import write_safetensors
from cq.model.deferred import Deferred

TOKENS = [np.arange(7, dtype=np.int32), np.arange(3, dtype=np.int32)]
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 16_384,
    "tie_word_embeddings": False,
}
RUN = (
    "from cq.cli import main; main(standalone_mode=False); "
    "print(next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)
KILLED = (
    "import os, signal, time; from cq.cli import main; "
    "os.fsync = lambda file: (os.kill(os.getpid(), signal.{}), time.sleep(60)); main()"
)


def tiny(family: str, **sizes):
    torch.manual_seed(0)
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
        )
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | sizes))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Half a gigabyte of float32 in two bytes each, and the bytes of the largest tensor in float32."""
    folder, block = (
        tmp_path_factory.mktemp("large"),
        np.random.default_rng(0).normal(0, 0.02, 1 << 19).astype(np.float16),
    )
    transformers.LlamaConfig(**SIZES).save_pretrained(folder)
    shapes = read_settings(folder).config.shapes()
    tensors = {
        name: Deferred(shape, np.float16, lambda shape=shape: np.resize(block, shape)) for name, shape in shapes.items()
    }
    write_safetensors(folder / "model.safetensors", foreign(tensors, "llama"))
    return folder, 4 * max(int(np.prod(shape)) for shape in shapes.values())


def tiny_folder(folder):
    tiny("llama", tie_word_embeddings=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_and_16_bits_are_the_same_model(tmp_path, family, dtype):
    model = tiny(family).to(dtype)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.float().save_pretrained(tmp_path / "whole")
    whole, shards = cq.load(tmp_path / "whole"), cq.load(tmp_path / "shards")
    for ours, theirs in zip(shards.logits(TOKENS), whole.logits(TOKENS)):
        assert ours.tobytes() == theirs.tobytes()
    for strategy in cq.WeightOnly(), cq.Dynamic(), cq.Dynamic(cq.Scheme.textbook()), cq.Static():
        given = [TOKENS] if isinstance(strategy, cq.Static) else None
        q, wanted = (cq.quantize(cq.load(tmp_path / name), strategy, given) for name in ("shards", "whole"))
        assert q.logits(TOKENS)[0].tobytes() == wanted.logits(TOKENS)[0].tobytes()


@pytest.mark.parametrize("strategy", [[], ["--textbook"]], ids=["default", "textbook"])
def test_quantizing_holds_the_result_and_a_tensor(large, tmp_path, strategy):
    """At most the quantized model and twice the largest tensor, beside what any command takes."""
    folder, largest = large
    command = [
        sys.executable,
        "-c",
        RUN,
        "quantize",
        str(folder),
        str(tmp_path / "q.safetensors"),
        "--strategy",
        "dynamic",
        *strategy,
    ]
    base = subprocess.run(
        [sys.executable, "-c", RUN, "inspect", str(tiny_folder(tmp_path / "tiny"))], check=True, capture_output=True
    )
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, least = int(found.stdout.split()[-1]), int(base.stdout.split()[-1])
    size = (tmp_path / "q.safetensors").stat().st_size
    assert size > 100e6 and peak - least <= size + 2 * largest, (
        f"{peak:,} - {least:,} bytes, result {size:,}, tensor {largest:,}"
    )


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)])
def test_a_killed_run_leaves_no_broken_output(tmp_path, name, code):
    source, out = tiny_folder(tmp_path / "tiny"), tmp_path / "out"
    out.mkdir()
    command = ["quantize", str(source), str(out / "q.safetensors"), "--strategy", "dynamic"]
    ended = subprocess.run([sys.executable, "-c", KILLED.format(name), *command], capture_output=True)
    assert ended.returncode == code
    assert not (out / "q.safetensors").exists() and (name == "SIGKILL" or not list(out.iterdir()))
    cq.save(cq.load(source), out / "q.safetensors")
    before = (out / "q.safetensors").read_bytes()
    subprocess.run([sys.executable, "-c", KILLED.format(name), *command, "--force"], capture_output=True)
    assert (out / "q.safetensors").read_bytes() == before


def test_files_may_be_replaced_while_a_model_lives(tmp_path):
    source = tiny_folder(tmp_path / "tiny")
    model, again = cq.load(source), cq.load(source)
    wanted = cq.load(source).logits(TOKENS)[0]
    cq.save(cq.quantize(again, cq.Dynamic()), source / "model.safetensors")
    assert model.logits(TOKENS)[0].tobytes() == wanted.tobytes()
    q = cq.load(source / "model.safetensors")
    cq.save(q, source / "model.safetensors")  # reads what it replaces
    assert q.logits(TOKENS)[0].tobytes() == cq.quantize(model, cq.Dynamic()).logits(TOKENS)[0].tobytes()


def test_a_checkpoint_is_packed_when_it_is_used(tmp_path):
    model = cq.load(tiny_folder(tmp_path / "tiny"))
    wide = cq.Transformer(
        cq.Config(**model.config.to_dict() | {"vocab_size": 20_000, "tied": True}), _wide(model, 20_000)
    )
    q = cq.quantize(wide, cq.Dynamic())
    cq.save(q, tmp_path / "q.safetensors")
    tracemalloc.start()
    again = cq.load(tmp_path / "q.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 32 / 2
    results = [None] * 4

    def run(i: int) -> None:
        results[i] = again.logits(TOKENS)[0].tobytes()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {q.logits(TOKENS)[0].tobytes()}


def _wide(model: cq.Transformer, vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(0, 0.05, (vocabulary, *shape[1:]) if name == "embed.word" else shape).astype(np.float32)
        for name, shape in model.config.shapes().items()
        if name != "head.weight"
    }


def test_deferred_arrays_pickle_as_themselves(tmp_path):
    model = cq.load(tiny_folder(tmp_path / "tiny"))
    again = pickle.loads(pickle.dumps(model))
    os.remove(tmp_path / "tiny" / "model.safetensors")
    assert again.logits(TOKENS)[0].tobytes() == model.logits(TOKENS)[0].tobytes()
