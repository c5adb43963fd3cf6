"""Generation: cached decoding beside whole forward passes and transformers, ragged batches, what ends a text, and bad
arguments."""

import numpy as np
import pytest
import torch
from configurations import LLAMA
from transformers import LlamaConfig, LlamaForCausalLM

import cq
from cq.formats.names import canonical
from cq.model import chat
from cq.model.generate import Generator, Text
from cq.model.sampling import Sampling

NEW = 70  # crosses blocks of 16, of 48 queries and of 64 kept tokens


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(4)
    return [rng.integers(0, 61, n).astype(np.int32) for n in (1, 7, 50, 66)]


@pytest.fixture(scope="module")
def float_model(random_model):
    return random_model("llama", max_positions=150, tied=False)[0]


@pytest.fixture(scope="module")
def models(float_model, random_model, prompts):
    """Name → a model, and whether its scheme sees one token at a time."""
    learned = random_model("llama", max_positions=150, rope_theta=None)[0]
    return {
        "weight-only": cq.quantize(float_model, cq.WeightOnly()),
        "dynamic": cq.quantize(float_model, cq.Dynamic()),
        "static": cq.quantize(float_model, cq.Static(), prompts),
        "static stream": cq.quantize(float_model, cq.Static(residual="int8", smooth=False), prompts),
        "float32 attention": cq.quantize(float_model, cq.Dynamic(cq.Scheme(attention="float32"))),
        "mixed": cq.quantize(float_model, cq.Mixed((("layers.0.*", cq.Static()), ("*", cq.Dynamic()))), prompts),
        "learned positions": cq.quantize(learned, cq.Dynamic()),
        "normed heads": cq.quantize(random_model("llama", max_positions=150, qk_norm=True)[0], cq.Dynamic()),
    }


NAMES = (
    "weight-only",
    "dynamic",
    "static",
    "static stream",
    "float32 attention",
    "mixed",
    "learned positions",
    "normed heads",
)


def decoded(model, prompts, cache=None, new=NEW):
    """The ids of each sequence, and (ids before, scores) of every choice."""
    seen = []

    class Watching(Sampling):
        def next(self, scores, before, draws):
            seen.append((before.copy(), scores.copy()))
            return super().next(scores, before, draws)

    generator = Generator(model, prompts, new, Watching(), cache)
    list(generator.steps(lambda i, token: False))
    return generator.tokens, seen


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_changes_no_bit_of_a_quantized_model(models, prompts, name):
    _, seen = decoded(models[name], prompts)
    assert len(seen) == NEW * len(prompts)
    some = seen[:4] + seen[4::7]
    whole = models[name].logits([before for before, _ in some])
    assert all(np.array_equal(scores, rows[-1]) for (_, scores), rows in zip(some, whole))


def test_a_float32_model_differs_by_rounding(float_model, prompts):
    _, seen = decoded(float_model, prompts)
    whole = float_model.logits([before for before, _ in seen[::7]])
    for (_, scores), rows in zip(seen[::7], whole):
        np.testing.assert_allclose(scores, rows[-1], atol=2e-5 * np.abs(rows[-1]).max())


@pytest.mark.parametrize(
    "name, other", [("weight-only", "int8"), ("dynamic", "float32"), ("float32 attention", "int8")]
)
def test_other_caches_are_close(models, prompts, name, other):
    model = models[name]
    ids, own = decoded(model, prompts)
    _, others = decoded(model, ids, other, 1)  # the next scores, from the same tokens
    wanted = model.logits(ids)
    errors = [np.square(scores - rows[-1]).mean() / rows[-1].var() for (_, scores), rows in zip(others, wanted)]
    assert 0 < np.mean(errors) < 3e-3  # 25 dB


def test_bad_caches_are_refused(models, prompts):
    with pytest.raises(cq.UnsupportedError, match="static"):
        models["static"].generate(prompts[1], cache="float32")
    with pytest.raises(cq.CqError, match="cache: .*'int4'"):
        models["dynamic"].generate(prompts[1], cache="int4")


@pytest.mark.parametrize("name", ("dynamic", "weight-only", "mixed"))
@pytest.mark.parametrize("cache", (None, "int8"))
def test_a_batch_is_its_prompts_one_by_one(models, prompts, name, cache):
    model, choices = models[name], dict(temperature=1.5, top_k=20, seed=3, cache=cache)
    together = model.generate(prompts, 40, cache=cache)
    assert all(np.array_equal(ids, model.generate(prompt, 40, cache=cache)) for ids, prompt in zip(together, prompts))
    assert np.array_equal(model.generate(prompts, 40, **choices)[0], model.generate(prompts[0], 40, **choices))
    assert len({tuple(ids) for ids in together}) == len(prompts)


def test_sequences_that_end_early_leave_the_others_alone(models, prompts):
    model = models["dynamic"]
    free = model.generate(prompts, NEW)
    stop = [int(free[0][3]), int(free[2][9])]
    for whole, cut in zip(free, model.generate(prompts, NEW, stop=stop)):
        at = next((i for i, token in enumerate(whole) if token in stop), len(whole))
        assert np.array_equal(cut, whole[:at])


def test_threads_change_no_bit(models, prompts):
    threads = cq.info()["threads"]
    try:
        found = []
        for n in (1, 3):
            cq.set_num_threads(n)
            found.append([scores for _, scores in decoded(models["dynamic"], prompts, new=30)[1]])
    finally:
        cq.set_num_threads(threads)
    assert all(map(np.array_equal, *found))


@pytest.mark.parametrize("heads, kv", [(4, 4), (6, 2), (3, 1)])
def test_greedy_is_that_of_transformers(heads, kv):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=heads * 8,
        intermediate_size=60,
        num_hidden_layers=3,
        max_position_embeddings=128,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    theirs = LlamaForCausalLM(config).eval()
    weights = {name: array.numpy() for name, array in theirs.state_dict().items()}
    sizes = dict(vocab_size=97, hidden_size=heads * 8, num_layers=3, num_heads=heads, num_kv_heads=kv)
    sizes |= dict(intermediate_size=60, max_positions=128)
    ours = cq.Transformer(
        cq.Config(**LLAMA | sizes | dict(norm_eps=config.rms_norm_eps, tied=False)), canonical(weights, "llama", "test")
    )
    for n in (1, 9, 70):
        prompt = np.random.default_rng(n).integers(0, 97, n)
        given = dict(inputs=torch.tensor(prompt)[None], attention_mask=torch.ones(1, n, dtype=int), max_new_tokens=50)
        with torch.no_grad():
            wanted = theirs.generate(**given, do_sample=False)[0, n:]
            punished = theirs.generate(**given, do_sample=False, repetition_penalty=1.3)[0, n:]
        assert np.array_equal(ours.generate(prompt, 50), wanted.numpy())
        assert np.array_equal(ours.generate(prompt, 50, repetition_penalty=1.3), punished.numpy())


def test_room_doubles_and_never_passes_the_bound(models):
    prompt = np.arange(3)
    generator = Generator(models["dynamic"], [prompt, prompt], 140, Sampling(), None)
    rooms = [tuple(generator.cache.capacities) for _ in generator.steps(lambda i, token: False)]
    assert sorted(set(rooms)) == [(64, 64), (128, 128), (192, 192)]
    assert [len(ids) for ids in generator.tokens] == [143, 143] and generator.cache.nbytes == 0


def test_long_prompts_pass_in_parts(models, monkeypatch, prompts):
    wanted = models["dynamic"].generate(prompts, 20)
    monkeypatch.setattr("cq.model.generate.PREFILL", 19)
    assert all(map(np.array_equal, wanted, models["dynamic"].generate(prompts, 20)))


def test_positions_end_a_text(float_model, models, prompts):
    full = np.arange(148) % 61
    for model in (float_model, models["dynamic"]):
        assert [len(ids) for ids in model.generate([full, prompts[0]], 9)] == [2, 9]
        with pytest.raises(cq.CqError, match="prompt 1: 150 tokens leave no room"):
            model.generate([prompts[0], np.zeros(150, int)])
        assert model.generate([]) == []


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker(tiny_lm):
    return cq.quantize(cq.load(tiny_lm), cq.Dynamic())


def test_pieces_make_the_text_and_stop_strings_end_it(speaker):
    text = speaker.generate("To be", 30, temperature=1.0, seed=1)
    assert "".join(speaker.stream("To be", 30, temperature=1.0, seed=1)) == text and len(text) > 9
    for stop in (text[4:7], [text[4:7], "never said"], text[5]):
        first = text.index(stop if isinstance(stop, str) else stop[0])
        assert speaker.generate("To be", 30, temperature=1.0, seed=1, stop=stop) == text[:first]
    ids = speaker.generate(speaker.tokenize("To be"), 30, temperature=1.0, seed=1)
    assert speaker.tokenizer.decode(list(ids)) == text
    assert list(speaker.stream(speaker.tokenize("To be"), 30, temperature=1.0, seed=1)) == list(ids)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    "whole, stops, wanted",
    [
        ("naïve 日本語 🙂!", (), "naïve 日本語 🙂!"),
        ("one STOP two", ("STOP",), "one "),
        ("one STO", ("STOP",), "one STO"),
        ("aab", ("ab",), "a"),
        ("日本", ("本",), "日"),
        ("x", ("x",), ""),
        ("abcabd", ("abd", "bca"), "a"),
        ("aaaaa", ("a" * 1_000_000,), "aaaaa"),
        ("abcaab", ("ca", "caabx"), "ab"),
    ],
)
def test_no_half_characters_and_no_begun_stops(whole, stops, wanted):
    text, pieces = Text(Bytes(), stops), []
    for token in whole.encode():
        pieces.append(text.add(token))
        if text.ended:
            break
    pieces.append(text.rest())
    assert "".join(pieces) == wanted and "\ufffd" not in "".join(pieces)
    assert text.ended == (wanted != whole)


def test_half_a_character_at_the_end_shows():
    text = Text(Bytes(), ())
    assert [text.add(token) for token in "é".encode()[:1]] == [""] and text.rest() == "\ufffd"


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'root' %}{{ raise_exception('no root') }}"
    "{% endif %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_conversations_go_through_the_template(tiny_lm):
    bare = cq.load(tiny_lm)
    said = cq.Config(**bare.config.to_dict() | dict(chat_template=TEMPLATE, bos_token_id=65, eos_token_ids=(66,)))
    weights = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for name, shape in said.shapes().items()
    }
    model = cq.Transformer(said, weights, bare.tokenizer)
    messages = [{"role": "user", "content": "Hi"}]
    begin, end = (model.tokenizer.id_to_token(token) for token in (65, 66))
    prompt = chat.render(TEMPLATE, messages, begin, end)
    assert prompt == f"{begin}<user>Hi<assistant>"
    assert model.generate(messages, 9) == model.generate(prompt, 9) == "".join(model.stream(messages, 9))
    assert model.generate([messages, "Hi"], 9) == [model.generate(prompt, 9), model.generate("Hi", 9)]
    with pytest.raises(cq.CqError, match="no root"):
        model.generate([{"role": "root", "content": "Hi"}])
    with pytest.raises(cq.CqError, match="message 1"):
        model.generate([{"role": "user"}, "Hi"])
    with pytest.raises(cq.UnsupportedError, match="no chat template"):
        bare.generate(messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ ''.format.__globals__.x }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "{{ nothing.at.all }}",
    ],
)
def test_templates_are_strangers(template):
    with pytest.raises(cq.CqError, match="template fails"):
        chat.render(template, [{"role": "user", "content": "Hi"}], "", "")


def test_a_missing_jinja2_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(cq.UnsupportedError, match=r"cquant\[chat\]"):
        chat.render("x", [{"role": "user", "content": "Hi"}], "", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(max_new_tokens=0), "max_new_tokens: .*got 0"),
        (dict(max_new_tokens=True), "max_new_tokens"),
        (dict(max_new_tokens=2.5), "max_new_tokens"),
        (dict(temperature=-1), "temperature: .*-1"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(temperature="hot"), "temperature"),
        (dict(temperature=1, top_k=-1), "top_k: .*-1"),
        (dict(temprature=1), "no argument 'temprature'"),
        (dict(temperature=1, min_p=2), "min_p: .*2"),
        (dict(suppress_tokens=["a"]), "suppress_tokens"),
        (dict(begin_suppress_tokens="ab"), "begin_suppress_tokens"),
        (dict(min_length="1"), "min_length"),
        (dict(no_repeat_ngram_size=1.5), "no_repeat_ngram_size"),
        (dict(temperature=1, top_p=1.5), "top_p: .*1.5"),
        (dict(temperature=1, top_p=0), "top_p"),
        (dict(top_k=3), "top_k: .*temperature"),
        (dict(seed=1), "seed: .*temperature"),
        (dict(temperature=1, seed=-1), "seed: .*-1"),
        (dict(repetition_penalty=0), "repetition_penalty: .*0"),
        (dict(stop=[""]), "stop: .*''"),
        (dict(stop=[256]), "stop: .*256"),
        (dict(stop=None), "stop"),
        (dict(stop=[1.5]), "stop"),
        (dict(stop=b"ab"), "stop: need texts .*bytes"),
        (dict(stop={"ab": 1}), "stop: need texts .*dict"),
        (dict(prompt=7), "prompt: .*int"),
        (dict(prompt=[7]), "prompt 0: .*int"),
        (dict(prompt=""), "empty"),
        (dict(prompt=np.zeros((2, 2), int)), "1-D"),
        (dict(prompt=np.array([256])), "256"),
        (dict(prompt=np.zeros(0, int)), "empty"),
        (dict(prompt=np.array([1]), stop="x"), "stop: texts end texts"),
    ],
)
def test_bad_arguments_are_named(speaker, arguments, message):
    with pytest.raises(cq.CqError, match=message):
        speaker.generate(**dict(prompt="Hi") | arguments)


def test_only_language_models_speak(tiny_encoder, random_model):
    encoder = cq.load(tiny_encoder)
    for call in (encoder.generate, encoder.stream):  # the latter at once, not at its first piece
        with pytest.raises(cq.UnsupportedError, match="does not continue texts"):
            call("Hi")
    with pytest.raises(cq.CqError, match="tokenizer"):
        random_model("llama")[0].generate("Hi")


def test_nan_is_loud(random_model):
    config, weights = random_model("llama")[0].config, random_model("llama")[1]
    weights["final_norm.weight"][3] = np.nan
    with pytest.raises(cq.CqError, match="NaN or Inf"):
        cq.Transformer(config, weights).generate(np.array([1, 2]))
