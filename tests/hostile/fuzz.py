"""Makes bad input from a seed, gives it to cq, and says what came: everything must end soon, in a result or in one of
cq's errors, on one line of at most 1,000 characters."""

import json
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import cq
from cq.errors import LONGEST

SECONDS = 20  # of processor time, of one case


class TooLong(BaseException):
    pass


def _ring(number, frame):
    raise TooLong


def attempt(case: str, action: Callable[[], object]) -> str:
    """What an action ended in: "result", or the name of its error. Raises AssertionError for anything that it must not
    end in."""
    before = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            action()
        return "result"
    except (cq.CqError, OSError) as error:
        words = str(error)
        assert len(words) <= LONGEST and "\n" not in words, f"{case}: {len(words)} characters: {words[:2000]!r}"
        return type(error).__name__
    except MemoryError:
        return "MemoryError"
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:500]!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- files ------------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some changed, cut out, repeated or put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size, way = len(found), rng.randrange(7)
        at = min(int(rng.expovariate(8 / max(1, size))) if rng.random() < 0.7 else rng.randrange(size + 1), size)
        if way == 0 and size:
            found[min(at, size - 1)] = rng.randrange(256)
        elif way == 1 and size:
            found[min(at, size - 1)] ^= 1 << rng.randrange(8)
        elif way == 2:
            del found[at:]
        elif way == 3:
            del found[at : at + rng.choice((1, 4, 8, 64))]
        elif way == 4:
            found[at:at] = rng.choice((b"\0", b"\xff" * 8, b"[" * 99, b"9" * 30, b'"', b"}", rng.randbytes(9)))
        elif way == 5:
            found[at : at + 8] = rng.choice((2**63 - 1, 2**64 - 1, 2**31, 0, size)).to_bytes(8, "little")
        else:
            other = rng.randrange(size + 1)
            found[at:at] = found[other : other + rng.choice((4, 32, 256))]
    return bytes(found)


ODD = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    64,
    2**31 - 1,
    2**31,
    2**63,
    2**70,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    "",
    "a",
)
ODD += ("\ud800", "\0", "x" * 5000, "a\nb", "../../etc/passwd", [], {}, [[]], [None], {"": None}, [1] * 50, ["a"] * 50)
ODD += ({"type": "Sequence"}, {"type": []}, "nan", "int8", "mean", "silu", "linear", "(a+)+$", [[["deep"]]] * 3)


def twisted(value, rng: random.Random):
    """A JSON value of which a few places hold something else, are gone, or have moved."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, key, node = None, None, value
        while isinstance(node, dict | list) and node and (at is None or rng.random() < 0.8):
            at = node
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys)
            node = node[key]
        if at is None:
            return _copied(rng.choice(ODD))
        way = rng.random()
        if way < 0.6:
            at[key] = _copied(rng.choice(ODD))
        elif way < 0.75:
            del at[key]
        elif isinstance(at, dict):
            at[rng.choice((*at, "extra", ""))] = _copied(rng.choice(list(at.values())))
        else:
            at.insert(rng.randrange(len(at) + 1), _copied(rng.choice(ODD)))
    return value


def _copied(value):
    return json.loads(json.dumps(value))


def written(value) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


def use(path: Path) -> None:
    """Loads what lies there and, where that goes, runs it."""
    model = cq.load(path)
    tokens = [np.array([1, 2]) % model.config.vocab_size]
    if model.tokenizer is not None:
        model.tokenize("a text, and 12 é")
    model.forward(tokens)
    if model.head is not None and model.config.causal:
        model.generate(tokens[0], 2)


# --- arguments --------------------------------------------------------------------------------------------------------


class Unnameable:
    def __repr__(self):
        raise RuntimeError("no name")

    __str__ = __repr__


class Endless:
    """Claims to be long and has nothing."""

    def __len__(self):
        return 2**62

    def __getitem__(self, at):
        raise IndexError(at)


def odd_values(model, rng: random.Random) -> list:
    """Values of many kinds, few of which an argument may be."""
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    return [
        *(None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, 10**5000, -0.0, 0.5, 1e308, float("nan"), float("inf"), 1j),
        *("", "a", "\ud800", "a\0b", "n" * 100_000, "two\nlines", b"x", bytearray(b"x"), range(3), slice(2), ...),
        *([], {}, (), set(), frozenset([1]), [[]], [None], [[1, 2], [3]], {"input_ids": 5}, {"a": [1]}, [1, "a"]),
        *(object(), Unnameable(), [Unnameable()], Endless(), lambda *a: None, int, cq.Dynamic, cq.Dynamic(), model, cq),
        *(cq.Scheme(), cq.quantize_tensor(x), cq.quantize_tensor(x, axis=0), cq.quantize_tensor(x, "uint8"), iter([])),
        *(x, x[:, ::2], x.T, x[0], x[None], x * np.nan, x * np.inf, x.astype(">f4"), x.astype(np.float64), x * 0),
        *(x.astype(np.int8), x.astype(np.uint8), x.astype(complex), x.astype(object), x.astype("S3"), x.astype("U3")),
        *(np.array(5), np.empty(0, np.float32), np.empty((0, 4), np.int8), np.zeros((2, 0), np.uint8), np.float32(2)),
        *(
            np.ma.masked_array(x, x > 0),
            np.array(["a", None], object),
            np.array(["2020"], "datetime64[D]"),
            np.int64(3),
        ),
        *(
            np.broadcast_to(np.int8(1), (2, 70_000)),
            np.zeros(3, [("a", "i4")]),
            np.array([2**63], np.uint64),
            Exception(),
        ),
        *((i for i in range(3)), {"role": "user"}, [{"role": None}], [{"content": "a"}], Path("a"), Path("n" * 300)),
        rng.randbytes(3),
    ]


def calls(encoder, lm, classifier, folder: Path) -> list[tuple[str, Callable, list]]:
    """(name, function, good arguments) of every public function that ends soon."""
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    codes, weight, ids = x.astype(np.int8), cq.pack(cq.quantize_tensor(x, axis=1)), np.array([1, 2, 3])
    rows, path = np.ones((3, 8), np.float32), folder / "fuzzed.safetensors"
    seen = cq.observers.MinMax()
    seen.update(x)
    found = [
        ("pack", cq.pack, [codes, 0]),
        ("matmul_integer", cq.matmul_integer, [np.ones((3, 8), np.uint8), weight, 0]),
        (
            "linear",
            cq.linear,
            [rows, weight, np.ones(4, np.float32), "relu", np.ones((3, 4), np.float32), 0.5, 0, "int8"],
        ),
        ("quantize_tensor", cq.quantize_tensor, [x, "int8", False, None, None]),
        ("QTensor", cq.QTensor, [codes, np.float32(0.5), np.int32(0), None, None]),
        ("dequantize", lambda *parts: cq.QTensor(*parts).dequantize(), [codes, np.float32(0.5), np.int32(0)]),
        ("PackedWeight", lambda *parts: cq.pack(cq.QTensor(*parts)), [codes, np.float32(0.5), np.int32(0), None, None]),
        ("Scheme", cq.Scheme, [True, "per_channel", None, "uint8", False, "per_token", "int32", "int8"]),
        ("Static", cq.Static, [cq.Scheme(), ("*",), (), "minmax", "float32", True, True]),
        ("Dynamic", cq.Dynamic, [cq.Scheme(), ("*",), ()]),
        ("WeightOnly", cq.WeightOnly, [cq.Scheme(), ("*",), ()]),
        ("Mixed", cq.Mixed, [(("*", cq.Dynamic()),)]),
        ("QAT", lambda t, s, b: cq.QAT(target=t, steps=s, batch_size=b), [cq.Static(), 10, 2]),
        ("Training", lambda s, b, r: cq.Training(steps=s, batch_size=b, learning_rate=r), [10, 2, 0.1]),
        ("quantize", cq.quantize, [lm, cq.Dynamic(), [ids]]),
        ("save", cq.save, [lm, path]),
        ("load", cq.load, [path, None]),
        ("set_num_threads", cq.set_num_threads, [1]),
        ("rotate", cq.rotate, [lm]),
        ("compare", cq.compare, [None, [ids]]),
        ("sensitivity", cq.sensitivity, [None, [ids]]),
        ("mix", cq.mix, [None, [ids], 1.0]),
        ("train", cq.train, [lm, None, None]),
        ("make", cq.observers.make, ["minmax"]),
        ("update", lambda *a: cq.observers.MSE().update(*a), [x, 0]),
        ("merge", lambda *a: cq.observers.Histogram().merge(*a), [cq.observers.Histogram()]),
        ("qparams", seen.qparams, ["int8", False]),
    ]
    config = lm.config.to_dict()
    found.append(("Config", lambda *values: cq.Config(**dict(zip(config, values))), list(config.values())))
    found.append(("Transformer", cq.Transformer, [lm.config, lm.weights(), None]))
    for model, names in (
        (encoder, ("embed", "forward", "tokenize")),
        (lm, ("logits", "generate", "stream", "coverage")),
    ):
        given = {"tokenize": ["a text", True], "generate": ["a text", 2], "stream": ["a text", 2], "coverage": [5]}
        found += [
            (name, getattr(model, name), given.get(name, [["a text"] if name == "embed" else [ids]])) for name in names
        ]
    found += [
        ("embed, batches", encoder.embed, [["a"], 1]),
        ("prompts", lambda p, n: encoder.embed(["a"], prompt=p, prompt_name=n), ["a", None]),
        ("classify", classifier.classify, [[ids], 2]),
        ("rank", classifier.rank, ["a", ["b"], 2]),
        ("tokens_of", encoder.tokens_of, [["a", ids]]),
        ("observe", encoder.observe, [[ids], lambda site, x: None]),
        ("chat", lm.apply_chat_template, [[{"role": "user", "content": "a"}]]),
    ]
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 1}
    more = {"stop": ("x",), "cache": None, "no_repeat_ngram_size": 0, "suppress_tokens": [1], "min_new_tokens": 0}
    names = [*sampling, *more]
    values = [*sampling.values(), *more.values()]
    found.append(("sampling", lambda *v: lm.generate("a", 2, **dict(zip(names, v))), values))
    return found


def called(case: int, rng: random.Random, targets: list, odd: list) -> str:
    """One call with some of its arguments odd."""
    name, function, good = rng.choice(targets)
    arguments = list(good)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(arguments))
        arguments[at] = rng.choice(odd)
    result = attempt(
        f"call {case}: {name}, argument {at}: {type(arguments[at]).__name__}", lambda: _all(function(*arguments))
    )
    return f"{name}: {result}"


def _all(result) -> None:
    """Takes what a stream gives."""
    if hasattr(result, "__next__"):
        for _ in zip(range(5), result):
            pass
