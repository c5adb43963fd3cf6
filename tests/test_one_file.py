"""One file gives one checkpoint: the same bytes on every CPU, with any number of threads, in one process or over
several.

Child processes make checkpoints of two small models by each recipe, under another instruction set, other numbers of
threads, other kernels of BLAS and without NumPy's CPU features, and print their hashes. A second part holds what this
rests on: no module calls what chooses its code by CPU."""

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import cq

ROOT = Path(__file__).parent.parent
_SIZES = {
    "encoder": dict(
        family="bert",
        vocab_size=53,
        hidden_size=84,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=42,
        intermediate_size=133,
        max_positions=33,
        type_vocab_size=2,
        pooling="mean",
        normalize=True,
    ),
    "classifier": dict(
        family="bert",
        vocab_size=53,
        hidden_size=40,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=20,
        intermediate_size=37,
        max_positions=33,
        type_vocab_size=2,
        classifier="tanh",
        labels=("a", "b", "c"),
    ),
    "llama": dict(
        family="llama",
        vocab_size=197,
        hidden_size=60,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        intermediate_size=101,
        max_positions=300,
        norm="rms",
        norm_eps=1e-5,
        norm_first=True,
        activation="silu",
        gated=True,
        rope_theta=1e4,
        causal=True,
        lm_head=True,
        tied=True,
    ),
}
_SIZES["even llama"] = _SIZES["llama"] | dict(head_dim=16, intermediate_size=96)  # widths that transforms can rotate
OBSERVERS = ("minmax", "moving_average", "percentile", "token_percentile", "histogram", "mse", "entropy")
TEXTBOOK = cq.Scheme.textbook()


# --- in a child: models, recipes, hashes ------------------------------------------------------------------------------


def _model(kind: str) -> cq.Transformer:
    """Random weights, every bias among them, some features much larger than the others."""
    config, rng = cq.Config(**_SIZES[kind]), np.random.default_rng(9)
    shapes = config.shapes()
    if config.family == "bert":
        shapes |= {name[:-6] + "bias": shape[:1] for name, shape in shapes.items() if name.endswith(".weight")}
    weights = {
        name: (name.endswith("norm.weight") + (rng.random(shape) - 0.5) * 0.7).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name][::17] *= 9
    return cq.Transformer(config, weights)


def _samples(kind: str, count: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, _SIZES[kind]["vocab_size"], size) for size in rng.integers(5, 32, count)]


def _qat(target, **choices) -> cq.QAT:
    return cq.QAT(target=target, **dict(steps=20, batch_size=4) | choices)


# name → (model, strategy, change of the float32 model before it)
RECIPES = {f"static {name}": ("encoder", cq.Static(observer=name, smooth=False), None) for name in OBSERVERS}
RECIPES |= {f"static {kind}": (kind, cq.Static(), None) for kind in _SIZES}
RECIPES |= {
    f"{name} {kind}": (kind, strategy, None)
    for kind in ("encoder", "llama")
    for name, strategy in {
        "dynamic": cq.Dynamic(),
        "weight-only": cq.WeightOnly(),
        "weight-only groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=4)),
        "static textbook": cq.Static(TEXTBOOK, observer="minmax"),
        "dynamic textbook": cq.Dynamic(TEXTBOOK),
        "static plain": cq.Static(smooth=False, correct_bias=False, observer="minmax"),
        "mix": cq.Mixed(
            (
                ("*.ffn.*", cq.Static(observer="percentile")),
                ("*.output", None),
                ("*.key", cq.WeightOnly()),
                ("*", cq.Dynamic()),
            )
        ),
        "qat static": _qat(cq.Static(observer="minmax")),
        "qat moving average": _qat(cq.Static(observer="minmax"), ranges="moving_average"),
        "qat dynamic": _qat(cq.Dynamic()),
        "qat textbook": _qat(cq.Static(TEXTBOOK, observer="minmax")),
    }.items()
}
RECIPES |= {
    "weight-only best groups llama": (
        "llama",
        cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=8), effort="best"),
        None,
    )
}
RECIPES |= {f"compensated {kind}": (kind, cq.Dynamic(), "compensate") for kind in ("encoder", "llama")}
RECIPES |= {
    "rotated llama": ("llama", cq.Dynamic(), "rotate"),
    "static best llama": ("llama", cq.Static(effort="best"), None),
    "static best even llama": ("even llama", cq.Static(effort="best"), None),
    "qat best even llama": ("even llama", _qat(cq.Dynamic(effort="best")), None),
    "dynamic classifier": ("classifier", cq.Dynamic(), None),
    "float32 encoder": ("encoder", None, None),
    "float32 llama": ("llama", None, None),
    "qat next token": ("llama", _qat(cq.Dynamic(), loss="next_token"), None),
}
SPREAD = ("static llama", "static moving_average", "mix encoder")  # whose samples go over an executor, too


def _made(recipe: str, executor=None) -> cq.Transformer:
    kind, strategy, before = RECIPES[recipe]
    model, samples = _model(kind), _samples(kind)
    if before is not None:
        model = cq.compensate(model, samples) if before == "compensate" else cq.rotate(model)
    if strategy is None:
        return model
    needs = isinstance(strategy, (cq.Static, cq.QAT, cq.Mixed)) or strategy.effort == "best"
    return cq.quantize(model, strategy, calibration=samples if needs else None, executor=executor)


def _hashed(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def _outputs(model: cq.Transformer, kind: str) -> str:
    samples = _samples(kind, 4)
    if kind == "classifier":
        return _hashed(model.classify(samples))
    if kind == "encoder":
        return _hashed(*model.forward(samples), model.embed(samples))
    drawn = model.generate(samples[0], max_new_tokens=12, temperature=0.9, top_p=0.9, seed=3)
    return _hashed(*model.logits(samples), np.asarray(drawn))


def _print_hashes(spread: bool) -> None:
    """Recipe → hashes of the file and of outputs, as JSON; with `spread`, of the files of SPREAD, made over
    processes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        executor = ProcessPoolExecutor(2, mp_context=get_context("spawn")) if spread else None
        for recipe in SPREAD if spread else RECIPES:
            model = _made(recipe, executor)
            cq.save(model, path)
            found[recipe] = [hashlib.sha256(path.read_bytes()).hexdigest()[:16]]
            found[recipe] += [] if spread else [_outputs(model, RECIPES[recipe][0])]
        if executor is not None:
            executor.shutdown()
    print(json.dumps(found))


# --- the test ---------------------------------------------------------------------------------------------------------


def _numpy_features() -> str:
    """All that NumPy would choose code by, of what this CPU has."""
    from numpy._core import _multiarray_umath as umath

    return " ".join(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name))


def _ways() -> dict[str, dict[str, str]]:
    """The environments of the children. Each changes several settings, since none may change a byte."""
    one, five = ({"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n} for n in "15")
    plain = {"NPY_DISABLE_CPU_FEATURES": _numpy_features(), "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-AVX512F"}
    others = cq.info()["isa_available"][:-1]
    ways = {
        f"CQ_ISA={isa}, {t['OMP_NUM_THREADS']} threads": {"CQ_ISA": isa} | t for isa, t in zip(others, (one, five) * 2)
    }
    return ways | {
        "BLAS of another CPU, 1 thread": {"OPENBLAS_CORETYPE": "Prescott"} | one,
        "plain NumPy and libm, 5 threads": plain | five,
    }


def _child(setting: dict[str, str], *arguments: str) -> dict[str, list[str]]:
    usual = {name: value for name, value in os.environ.items() if name not in ("CQ_ISA", "OMP_NUM_THREADS")}
    usual["OPENBLAS_NUM_THREADS"] = "1"
    run = subprocess.run([sys.executable, __file__, *arguments], env=usual | setting, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def usual() -> dict[str, list[str]]:
    return _child({})


@pytest.mark.parametrize("way", _ways())
def test_same_bytes(usual, way):
    found = _child(_ways()[way])
    assert [recipe for recipe in RECIPES if found[recipe] != usual[recipe]] == []


def test_same_bytes_over_processes(usual):
    found = _child({}, "spread")
    assert [recipe for recipe in SPREAD if found[recipe] != usual[recipe][:1]] == []


def test_the_record(usual):
    """The bytes are also those that every other machine found. Where arithmetic changes on purpose, record them anew:
    `python tests/test_one_file.py` prints them."""
    record = json.loads(Path(__file__).with_suffix(".json").with_stem("one_file").read_text())
    assert [
        recipe for recipe in RECIPES if record.get(recipe) != usual[recipe]
    ] == [] and record.keys() == RECIPES.keys()


# --- what it rests on -------------------------------------------------------------------------------------------------

# NumPy's loops over these, and the C library's functions, differ from CPU to CPU; products are BLAS's.
_NUMPY = set(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan arcsin arccos arctan arctan2 sinh cosh tanh arctanh power "
    "float_power cbrt hypot logaddexp linalg einsum dot vdot inner tensordot matmul vecdot matvec vecmat convolve "
    "correlate "
    "polyfit interp".split()
)
_MATH = set(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh pow cbrt hypot erf erfc "
    "gamma lgamma dist sumprod".split()
)
_CHECKS = "gradients are checked in float64 with it; float32, which trains, has the kernels of _core"
ALLOWED = {  # file → what it may call, and why
    "affine.py": (
        {"**", "np.exp", "np.matmul", "math.erfc"},
        "the executable specification: sums of whole numbers that are exact; no model runs it",
    ),
    "train/passes.py": ({"**", "@", "np.exp", "np.einsum", "np.matmul"}, _CHECKS),
    "model/overflow.py": ({"np.log2"}, "bits of headroom, which are only shown"),
}


def _calls(path: Path) -> set[str]:
    """What a module uses of all that may differ from CPU to CPU."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name("np"), attr=name) if name in _NUMPY:
                found.add(f"np.{name}")
            case ast.Attribute(value=ast.Name("math"), attr=name) if name in _MATH:
                found.add(f"math.{name}")
            case ast.BinOp(op=ast.MatMult()) | ast.AugAssign(op=ast.MatMult()):
                found.add("@")
            case ast.BinOp(op=ast.Pow(), left=left, right=right) if not _exact(left, right):
                found.add("**")
            case ast.Attribute(attr="dot"):
                found.add("np.dot")
            case ast.Call(func=ast.Attribute(attr="argsort" | "argpartition" as name), keywords=words):
                if not any(word.arg == "kind" and word.value.value == "stable" for word in words):
                    found.add(name)
            case ast.ImportFrom(module="math" | "numpy", names=names):
                found |= {f"{node.module}.{name.name}" for name in names if name.name in _NUMPY | _MATH}
    return found


def _exact(base: ast.expr, exponent: ast.expr) -> bool:
    """Powers of literal whole numbers, and squares."""
    while isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    whole = isinstance(exponent, ast.Constant) and type(exponent.value) is int
    return whole and (exponent.value == 2 or isinstance(base, ast.Constant))


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT / "cq")) for path in (ROOT / "cq").rglob("*.py")))
def test_nothing_chooses_by_cpu(path):
    allowed, _ = ALLOWED.get(path, (set(), ""))
    assert _calls(ROOT / "cq" / path) == allowed


if __name__ == "__main__":
    _print_hashes("spread" in sys.argv[1:])
