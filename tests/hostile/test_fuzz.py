"""Random bad input from fixed seeds: arguments, files of every format, tokenizers and templates. A sample always runs;
all of it runs under the marker `sweep`, where one test also goes on for ten minutes from a new seed:
`pytest -m sweep tests/hostile/test_fuzz.py -k ten_minutes`."""

import json
import random
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import test_gguf
import test_tokenizers as strange
from configurations import LLAMA

import cq
from cq.formats.huggingface import parse_config, write_folder
from cq.formats.tokenizer_files import parse_tokenizer
from cq.model.chat import render
from cq.report.trials import best_of

CALLS, FILES, MINUTES = 10_000, 5_000, 10
TEMPLATES = sorted((Path(__file__).parents[1] / "model" / "templates").glob("*.jinja"))


@pytest.fixture(scope="module")
def bases(tiny_encoder, tiny_lm, tmp_path_factory):
    """Format → (name of the file that is damaged, a folder that is whole, how it is used)."""
    root = tmp_path_factory.mktemp("bases")

    def at(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    sizes = dict(vocab_size=8, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    config = cq.Config(**LLAMA | sizes | dict(intermediate_size=8, max_positions=16))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in config.shapes().items()}
    model = cq.Transformer(config, weights)
    q = cq.quantize(model, cq.Static(observer="minmax"), [np.arange(1, 7)] * 3)
    cq.save(q, at("checkpoint") / "a.safetensors")
    cq.save(model, at("float32") / "a.safetensors")
    np.savez(at("npz") / "a.npz", config=json.dumps(config.to_dict()), **weights)
    (at("gguf") / "a.gguf").write_bytes(test_gguf.file())
    training = at("training") / "a.safetensors"
    choices = cq.Training(steps=1, batch_size=2)
    cq.train(model, [np.arange(1, 7)] * 4, choices, training)
    record = {"version": 1, "subject": {}, "budget": 1.0, "best": None, "values": {"a": 1.0}, "trials": []}
    trial = {"strategy": cq.Mixed((("*", cq.Dynamic()),)).to_dict(), "loss": 0.1, "time": 0.2}
    (at("record") / "a.json").write_text(json.dumps(record | {"trials": [trial], "best": trial}))

    def resume(path):
        cq.train(model, [np.arange(1, 7)] * 4, choices, path)

    kinds = {
        "checkpoint": ("a.safetensors", fuzz.use),
        "float32": ("a.safetensors", fuzz.use),
        "npz": ("a.npz", fuzz.use),
        "gguf": ("a.gguf", fuzz.use),
        "training": ("a.safetensors", resume),
        "record": ("a.json", best_of),
    }
    for kind, (name, work) in kinds.items():  # undamaged, they are accepted
        work(root / kind / name)
    return root, kinds


FORMATS = ("checkpoint", "float32", "npz", "gguf", "training", "record")


def one_file(case: int, rng: random.Random, bases, kind: str, folder: Path) -> str:
    root, kinds = bases
    name, work = kinds[kind]
    data, target = (root / kind / name).read_bytes(), folder / name
    if name.endswith("json") and rng.random() < 0.7:
        data = fuzz.written(fuzz.twisted(json.loads(data), rng))
    elif name.endswith("safetensors") and rng.random() < 0.5:
        data = rewritten(data, rng)
    else:
        data = fuzz.damaged(data, rng)
    target.write_bytes(data)
    return fuzz.attempt(f"file {case} of {kind}", lambda: work(target))


def rewritten(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or another record in it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.8:
        key = rng.choice(list(metadata))
        metadata[key] = fuzz.written(fuzz.twisted(json.loads(metadata[key]), rng)).decode()
    else:
        header = fuzz.twisted(header, rng)
    text = fuzz.written(header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    """A Hugging Face folder whose JSON files are twisted, one at a time."""
    folder = tmp_path_factory.mktemp("folder")
    config = {"model_type": "bert", "vocab_size": 256, "hidden_size": 8, "num_hidden_layers": 1} | {
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = parse_config(config, "config")[0].shapes()
    shapes |= {name[:-6] + "bias": shape[:1] for name, shape in shapes.items() if name.startswith("layers.")}
    shapes["embed.norm.bias"] = (8,)
    write_folder(folder, folder, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, "bert")
    assert cq.load(folder).forward([[1, 2]])[0].shape == (2, 8)
    (folder / "tokenizer.json").write_bytes((tiny_lm.parent / "tokenizer.json").read_bytes())
    files = {
        "tokenizer_config.json": {"model_max_length": 16, "unk_token": "a", "added_tokens_decoder": {}},
        "special_tokens_map.json": {"pad_token": {"content": "b", "special": True}},
        "added_tokens.json": {"zz": 256},
        "generation_config.json": {"eos_token_id": [1], "temperature": 0.5, "do_sample": True, "suppress_tokens": [3]},
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
        "sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": None},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder, [*files, "config.json", "tokenizer.json"]


def one_folder(case: int, rng: random.Random, folders) -> str:
    folder, names = folders
    file = folder / rng.choice(names)
    data = file.read_bytes()
    try:
        if rng.random() < 0.8:
            file.write_bytes(fuzz.written(fuzz.twisted(json.loads(data), rng)))
        else:
            file.write_bytes(fuzz.damaged(data, rng))
        return fuzz.attempt(f"folder {case}, {file.name}", lambda: fuzz.use(folder))
    finally:
        file.write_bytes(data)


TEXTS = ("", "a", "b a  ab\n", "é ﷺ 字 😀", "a" * 300, "0123 " * 20)
ONE = {"id": "X", "ids": [0], "tokens": ["a"]}
PARTS = {
    "normalizer": [
        *({"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Strip", "ByteLevel")),
        strange.replace("bb", String="a"),
        strange.replace("c", Regex="a{2,}|b"),
        strange.charsmap([1 << 10] + [0] * 255, b"a\0"),
        {"type": "Prepend", "prepend": "▁"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
        | {"lowercase": True},
    ],
    "pre_tokenizer": [
        *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")),
        strange.split(strange.IN_USE["llama-3"]),
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "FixedLength", "length": 3},
        {"type": "CharDelimiterSplit", "delimiter": "a"},
    ],
    "post_processor": [
        strange.template([strange.SPECIAL, strange.A], {"X": {"id": "X", "ids": [0], "tokens": ["a"]}}),
        {"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ],
    "decoder": [
        *({"type": kind} for kind in ("ByteFallback", "Fuse")),
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
        strange.replace(" ", String="▁"),
    ],
    "model": [
        strange.WORDS,
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "[UNK]": 3}, "merges": [["a", "b"]], "unk_token": "[UNK]"},
        {"type": "WordPiece", "vocab": {"a": 0, "##b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
        | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.5], ["ab", -2.5]], "byte_fallback": False},
    ],
    "added_tokens": [
        [],
        [
            {"id": 4, "content": "zz", "special": True, "normalized": False, "lstrip": False}
            | {"rstrip": True, "single_word": False}
        ],
    ],
}


def one_tokenizer(case: int, rng: random.Random) -> str:
    parts = {name: rng.choice(choices) for name, choices in PARTS.items()}
    if rng.random() < 0.4:
        parts |= strange.chain("normalizer", "normalizers", *rng.choices(PARTS["normalizer"], k=3))
    values = json.loads(strange.tokenizer(**parts))
    if rng.random() < 0.9:
        values = fuzz.twisted(values, rng)
    data = fuzz.written(values) if rng.random() < 0.9 else fuzz.damaged(fuzz.written(values), rng)

    def work():
        tokens = parse_tokenizer(data, "tokenizer.json")
        model = cq.Transformer.__new__(cq.Transformer)
        model.config = cq.Config(family="bert", **SIZES)
        model.take_tokenizer(tokens)
        for text in TEXTS:
            model.tokenize(text)
        tokens.to_str()

    return fuzz.attempt(f"tokenizer {case}: {data[:3000]!r}", work)


SIZES = dict(vocab_size=256, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, intermediate_size=8)
SIZES |= dict(max_positions=4096, max_length=4096)
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PIECES = (
    *(
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m }}",
        "{{ messages[0].content * 99 }}",
        "{% if x %}",
        "{% endif %}",
    ),
    *("{{ 'a' * 3000000000 }}", "{{ range(10**9) | list }}", "{% set x = namespace(a=1) %}", "{{ ''.__class__ }}"),
    *(
        "{{ raise_exception('no\\nno' * 999) }}",
        "{{ messages | tojson }}",
        "{{ 10 ** 2000000 }}",
        "{% break %}",
        "{{ {} }}",
    ),
    *(
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% include 'x' %}",
        "{{ strftime_now('%Y') }}",
        "{{ x[",
        "}}",
    ),
)


def one_template(case: int, rng: random.Random) -> str:
    text = rng.choice(TEMPLATES).read_text() if rng.random() < 0.5 else ""
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.choice((0, 0, 3)) :]
    messages = MESSAGES if rng.random() < 0.5 else fuzz.twisted(MESSAGES, rng)
    return fuzz.attempt(f"template {case}: {text[:2000]!r}", lambda: render(text, messages, "<s>", "</s>"))


@pytest.fixture(scope="module")
def targets(tiny_encoder, tiny_lm, random_model, tmp_path_factory):
    lm = cq.load(tiny_lm)
    classifier = random_model("bert", labels=("a", "b"), classifier="tanh")[0]
    return lm, fuzz.calls(cq.load(tiny_encoder), lm, classifier, tmp_path_factory.mktemp("calls"))


def call(case: int, rng: random.Random, targets) -> str:
    lm, found = targets
    return fuzz.called(case, rng, found, fuzz.odd_values(lm, rng))


def seeded(seed: object, case: int) -> random.Random:
    return random.Random(f"{seed} {case}")


@pytest.fixture(autouse=True)
def quiet(capfd, monkeypatch, tmp_path):
    """What is written lies where nobody looks for it, and no case prints anything."""
    monkeypatch.chdir(tmp_path)
    threads, attempt = cq.info()["threads"], fuzz.attempt

    def silent(case, action):
        result, printed = attempt(case, action), capfd.readouterr()
        assert printed == ("", ""), f"{case}: printed {printed.out[:300]!r} {printed.err[:300]!r}"
        return result

    monkeypatch.setattr(fuzz, "attempt", silent)
    yield
    cq.set_num_threads(threads)


def run(count: int, one, *given) -> None:
    for case in range(count):
        one(case, seeded("fixed", case), *given)


@pytest.mark.parametrize("count", [300, pytest.param(CALLS, marks=pytest.mark.sweep)])
def test_arguments(count, targets):
    run(count, call, targets)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [60, pytest.param(FILES, marks=pytest.mark.sweep)])
def test_files(count, kind, bases, tmp_path):
    run(count, one_file, bases, kind, tmp_path)


@pytest.mark.parametrize("count", [60, pytest.param(FILES, marks=pytest.mark.sweep)])
def test_folders(count, folders):
    run(count, one_folder, folders)


@pytest.mark.parametrize("count", [150, pytest.param(FILES, marks=pytest.mark.sweep)])
def test_tokenizers(count):
    run(count, one_tokenizer)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.sweep)])
def test_templates(count):
    run(count, one_template)


@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_ten_minutes(targets, bases, folders, tmp_path):
    """Everything in turn, from a new seed, which a failure names."""
    seed, end, case = time.time_ns(), time.monotonic() + 60 * MINUTES, 0
    kinds = [(call, targets), (one_folder, folders), (one_tokenizer,), (one_template,)]
    kinds += [(one_file, bases, kind, tmp_path) for kind in FORMATS]
    while time.monotonic() < end:
        one, *given = kinds[case % len(kinds)]
        try:
            one(case, seeded(seed, case), *given)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {error}") from error.__cause__
        case += 1
