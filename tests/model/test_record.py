"""Real models give the outputs on record, by every strategy and scheme, on the scalar kernels as on the best, before
and after a checkpoint. Where arithmetic changes on purpose, record them anew: `python tests/model/test_record.py FOLDER
> …/record.json` with the folder of all-MiniLM-L6-v2."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import cq
from cq.report import samples

TEXTBOOK = cq.Scheme.textbook()
TEXTS = [
    "A cat sits on the mat.",
    "The stock market fell by 3 % on Tuesday, its worst day since March.",
    "Why?",
    "He is playing the guitar while she sings an old song that nobody else remembers.",
]
MIX = cq.Mixed(
    (
        ("*.ffn.down", cq.WeightOnly()),
        ("layers.0.*", cq.Dynamic()),
        ("*.attention.*", cq.Static(smooth=False)),
        ("layers.1.ffn.*", None),
        ("*", cq.Static()),
    )
)
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "dynamic": cq.Dynamic(),
    "static": cq.Static(observer="minmax"),
    "weight-only groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=64)),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static textbook": cq.Static(TEXTBOOK, observer="minmax"),
    "static plain": cq.Static(cq.Scheme(attention="float32", bias="float32"), observer="minmax", smooth=False),
    "static stream": cq.Static(observer="minmax", residual="int8"),
    "dynamic per tensor": cq.Dynamic(cq.Scheme(activation_granularity="per_tensor"), exclude=("*.key", "embed.*")),
    "mix": MIX,
    "qat": cq.QAT(steps=20, batch_size=2, target=cq.Static(observer="minmax")),
    "qat textbook": cq.QAT(steps=3, batch_size=2, target=cq.Static(TEXTBOOK, observer="minmax")),
    "qat dynamic": cq.QAT(steps=3, batch_size=2, target=cq.Dynamic()),
}
RECORDED = [f"shipped {name}" for name in STRATEGIES]
RECORDED += [f"minilm {name}" for name in STRATEGIES if not name.startswith("qat")]
# One strategy of each kind; all-MiniLM-L6-v2 takes fewer, since scalar kernels are slow. Training has its own test.
ON_SCALAR = [f"shipped {name}" for name in ("static stream", "mix")]
ON_SCALAR += [
    f"{kind} {name}"
    for kind in ("shipped", "minilm")
    for name in ("weight-only", "dynamic", "static", "static textbook")
]


def _outputs(model: cq.Transformer, tokens: list[np.ndarray]) -> str:
    found = model.logits(tokens) if model.head is not None else [model.embed(tokens), *model.forward(tokens[:1])]
    return hashlib.sha256(b"".join(map(np.ndarray.tobytes, found))).hexdigest()[:16]


def _print_hashes(minilm: str, wanted: list[str]) -> None:
    """Model and strategy, of those wanted → hashes of the outputs of the quantized model and of what its checkpoint
    gives, as JSON."""
    shipped, found = samples.shipped_model(), {}
    text = (shipped / "evaluation.txt").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for kind, source in ("shipped", shipped), ("minilm", minilm):
            model = cq.load(source)
            tokens = [model.tokenize(t) for t in (TEXTS if kind == "minilm" else [text[:200], text[500:540]])]
            found[f"{kind} float32"] = [_outputs(model, tokens)]
            for name, strategy in STRATEGIES.items():
                if f"{kind} {name}" not in wanted:
                    continue
                calibrated = isinstance(strategy, (cq.Static, cq.Mixed, cq.QAT))
                quantized = cq.quantize(model, strategy, tokens if calibrated else None)
                cq.save(quantized, path)
                found[f"{kind} {name}"] = [_outputs(quantized, tokens), _outputs(cq.load(path), tokens)]
        trained = cq.load(shipped / "qat.safetensors")
        found["shipped qat.safetensors"] = [_outputs(trained, [trained.tokenize(text[:200])])]
    print(json.dumps(found, indent=0))


@pytest.mark.parametrize("isa", ["scalar", "best"])
def test_outputs_are_those_on_record(minilm_folder, isa):
    wanted = ON_SCALAR if isa == "scalar" else RECORDED
    setting = {"CQ_ISA": "scalar"} if isa == "scalar" else {}
    run = subprocess.run(
        [sys.executable, __file__, str(minilm_folder), *wanted],
        env=os.environ | setting,
        capture_output=True,
        text=True,
    )
    assert not run.returncode, run.stderr
    found = json.loads(run.stdout)
    record = json.loads(Path(__file__).with_name("record.json").read_text())
    assert {name: hashes for name, hashes in found.items() if hashes != record[name]} == {}
    assert found.keys() >= set(wanted) and (isa == "scalar" or found.keys() == record.keys())


if __name__ == "__main__":
    _print_hashes(sys.argv[1], sys.argv[2:] or RECORDED)
