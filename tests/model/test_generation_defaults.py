"""What a checkpoint's generation_config.json says of generation is what generate does, beside transformers; where a
text ends: stop strings with special tokens, and turns that end by their tokens' texts."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import cq
from cq.formats.huggingface import read_folder
from cq.model.generate import TURN_ENDS, Text
from cq.model.sampling import Sampling

SIZES = dict(
    vocab_size=120, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, eos_token_id=2
)
SPECIAL = ["<s>", "<pad>", "</s>", "<|im_start|>", "<|im_end|>"]
PROMPT = np.array([5, 17, 33])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, model) of a small Llama whose tokens are special ones and letters."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=90))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.eval().save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: 120 - len(SPECIAL)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(SPECIAL + letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


@pytest.fixture
def said(saved):
    """said(**entries) → (cq's model, transformers' model with the same generation_config.json)."""
    folder, model = saved

    def make(**entries):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 1} | entries))
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return cq.load(folder), model

    return make


def theirs(model, prompt=PROMPT, **arguments) -> list[int]:
    with torch.no_grad():
        ids = model.generate(torch.tensor(prompt)[None], **arguments)[0].tolist()[len(prompt) :]
    return ids[: ids.index(2)] if 2 in ids else ids


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3, "repetition_penalty": 0.8},
        {"suppress_tokens": [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 999]},
        {"begin_suppress_tokens": list(range(40))},
        {"bad_words_ids": [[n] for n in range(20, 50)] + [[2]]},
        {"bad_words_ids": [[a, b] for a in range(60) for b in range(0, 60, 2)] + [[5, 12, 8, 1]]},
        {"min_new_tokens": 30},
        {"min_length": 30},
        {"temperature": 0.5, "top_k": 3, "top_p": 0.5},  # without do_sample they count for nothing
    ],
)
def test_greedy_texts_are_those_of_transformers(said, entries):
    ours, reference = said(**entries)
    for start in range(5, 60, 6):
        prompt = np.array([start, start + 7, start + 3])
        assert ours.generate(prompt, 40).tolist() == theirs(reference, prompt, max_new_tokens=40)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")  # transformers', of what is wanted here
@pytest.mark.parametrize(
    "entries, most", [({}, 87), ({"max_new_tokens": 7}, 7), ({"max_length": 20}, 17), ({"max_length": 2}, 1)]
)
def test_the_longest_text_is_as_the_file_says(said, entries, most):
    """Positions end it at 87 where 128 would be the default."""
    ours, reference = said(min_new_tokens=200, **entries)
    assert len(ours.generate(PROMPT)) == most
    assert len(ours.generate(PROMPT, 30)) == 30
    if entries and most > 1:
        assert ours.generate(PROMPT).tolist() == theirs(reference)


@pytest.mark.parametrize(
    "entries",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
        {"do_sample": True, "top_k": 4, "min_p": 0.2},
        {"do_sample": True, "top_k": 0, "temperature": 2.0, "repetition_penalty": 1.3},
    ],
)
def test_what_is_drawn_among_is_transformers_own(said, entries):
    """The probabilities of the token after a prompt, by those of transformers' processors."""
    ours, reference = said(**entries)
    scores = ours.logits([PROMPT])[0][-1]
    sampling = Sampling.of(ours.config.generation, {})
    some = scores.copy()
    some[PROMPT] = np.where(
        some[PROMPT] > 0, some[PROMPT] / sampling.repetition_penalty, some[PROMPT] * sampling.repetition_penalty
    )
    tokens, chances = sampling.candidates(some)
    found = np.zeros(120)
    found[tokens] = chances
    out = reference.generate(
        torch.tensor(PROMPT)[None], max_new_tokens=1, output_scores=True, return_dict_in_generate=True
    )
    wanted = torch.softmax(out.scores[0][0].double(), -1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (ours.generate(PROMPT, 20, seed=1) == ours.generate(PROMPT, 20, seed=1)).all()


def test_arguments_count_more_than_files(said):
    ours, _ = said(
        do_sample=True, temperature=0.9, top_k=5, repetition_penalty=1.5, suppress_tokens=[9], min_new_tokens=4
    )
    plain, _ = said()
    for ids in (range(9, 10), np.array([9], np.int32), (np.int64(9),)):
        assert Sampling(suppress_tokens=ids) == Sampling(suppress_tokens=[9])
    off = dict(temperature=0, repetition_penalty=1.0, suppress_tokens=[], min_new_tokens=0)
    assert ours.generate(PROMPT, 30, **off).tolist() == plain.generate(PROMPT, 30).tolist()
    more = dict(temperature=2.0, top_k=0, seed=4)
    assert (
        ours.generate(PROMPT, 30, **off | more).tolist()
        == plain.generate(PROMPT, 30, **more | {"top_k": None}).tolist()
    )
    assert ours.generate(PROMPT, 30, seed=3).tolist() != plain.generate(PROMPT, 30).tolist()


def test_config_json_counts_where_there_is_no_file_of_its_own(saved, tmp_path):
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"repetition_penalty": 1.3, "do_sample": True}))
    assert read_folder(tmp_path)[0].generation == {
        "temperature": 1.0,
        "top_k": 50,
        "do_sample": True,
        "repetition_penalty": 1.3,
    }
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_folder(tmp_path)[0].generation is None


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"top_k": 1.5}, "'top_k' cannot be 1.5"),
        ({"top_p": "x"}, "'top_p' cannot be 'x'"),
        ({"do_sample": True, "temperature": -1}, "temperature: need a number of at least 0"),
        ({"suppress_tokens": [1.5]}, "'suppress_tokens' cannot be"),
        ({"bad_words_ids": [[]]}, "'bad_words_ids' cannot be"),
        ({"bad_words_ids": [3]}, "bad_words_ids: need a list of lists"),
        ({"stop_strings": [3]}, "'stop_strings' cannot be"),
        ({"max_new_tokens": -3}, "'max_new_tokens' cannot be -3"),
        ({"repetition_penalty": 0}, "repetition_penalty: need a positive number"),
    ],
)
def test_damage_is_named(saved, entries, words):
    (saved[0] / "generation_config.json").write_text(json.dumps(entries))
    with pytest.raises(cq.FormatError, match=f"generation_config.json: {words}"):
        cq.load(saved[0])


def test_checkpoints_keep_defaults(said, tmp_path):
    ours, _ = said(repetition_penalty=1.4, stop_strings=["q"])
    cq.save(ours, tmp_path / "model.safetensors")
    again = cq.load(tmp_path / "model.safetensors")
    assert again.config == ours.config and again.generate("abc", 30) == ours.generate("abc", 30)


# --- where a text ends ------------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer whose tokens are these."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(
    "tokens, stops, wanted",
    [
        (["one", "<end>", "two"], ("<end>",), "one"),
        (["one", "<end>", "two"], ("e<end>t",), "on"),
        (["one", "<end>", "two"], ("<end>tw",), "one"),
        (["one", "<end>", "two"], ("nd>",), "one"),
        (["one", "<end>", "two"], ("never",), "onetwo"),
        (["on", "<end>", "<end>", "two"], ("<end><end>",), "on"),
        (["o", "ne", "<end>"], ("one<end>",), ""),
        (["on", "e tw", "o"], ("e two",), "on"),
        (["a", "<end>", "b"], ("<end>c",), "ab"),
    ],
)
def test_stop_strings_may_hold_special_tokens(tokens, stops, wanted):
    special = {i: piece for i, piece in enumerate(tokens) if piece == "<end>"}
    text, said = Text(Pieces(*tokens), stops, special), ""
    for token in range(len(tokens)):
        said += text.add(token)
        if text.ended:
            break
    assert said + text.rest() == wanted
    assert text.ended == (wanted != "".join(piece for piece in tokens if piece != "<end>"))


@pytest.mark.parametrize(
    "stop, wanted",
    [((), "ab<user>"), ("<|im_end|>", "ab"), ("b<|im_end|>", "a"), (["zz", "<|im_end|>"], "ab"), (4, "ab")],
)
def test_a_special_token_ends_a_text_by_its_text(said, monkeypatch, stop, wanted):
    ours, _ = said()
    ids = [ours.tokenizer.token_to_id(c) for c in "ab"]
    user = [ours.tokenizer.token_to_id(c) for c in "<user>"]
    script = [*ids, 4, *user, 2]
    monkeypatch.setattr(Sampling, "next", lambda self, scores, seen, draws: script[len(seen) - 3])
    assert ours.generate("abc", 40, stop=stop) == wanted
    assert "".join(ours.stream("abc", 40, stop=stop)) == wanted


def test_turns_end_where_their_tokens_say_so(said, saved, monkeypatch):
    """The file forgot <|im_end|> among the ids that end a text; a conversation ends there all the same."""
    (saved[0] / "chat_template.jinja").write_text("abc")
    try:
        ours, _ = said()
    finally:
        (saved[0] / "chat_template.jinja").unlink()
    assert ours.config.eos_token_ids == (2,) and "<|im_end|>" in TURN_ENDS
    script = [ours.tokenizer.token_to_id(c) if c != "|" else 4 for c in "ab|user"] + [2]
    monkeypatch.setattr(Sampling, "next", lambda self, scores, seen, draws: script[len(seen) - 3])
    assert ours.generate([{"role": "user", "content": "Hi"}], 40) == "ab"
    assert ours.generate("abc", 40) == "abuser"


def test_stop_strings_of_the_file_end_texts(said, monkeypatch):
    ours, _ = said(stop_strings="user")
    script = [ours.tokenizer.token_to_id(c) for c in "abuserx"] + [2]
    monkeypatch.setattr(Sampling, "next", lambda self, scores, seen, draws: script[len(seen) - 3])
    assert ours.generate("abc", 40) == "ab" and ours.generate("abc", 40, stop="b") == "a"


@pytest.mark.parametrize(
    "said", [{"bos_token": "<s>", "eos_token": "<|im_end|>"}, {"bos_token": None, "eos_token": "</s>"}]
)
def test_templates_see_the_tokens_of_the_tokenizers_files(saved, tmp_path, said):
    """And not config.json's, whose ids are others."""
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {"pad_token": "<pad>"}))
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ messages[0].content }}{{ add_generation_prompt }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    model, messages = cq.load(tmp_path), [{"role": "user", "content": "Hi"}]
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for more in ({}, {"add_generation_prompt": True}):
        wanted = reference.apply_chat_template(messages, tokenize=False, **more)
        assert model.apply_chat_template(messages, **more) == wanted
    ids = model.tokenize(wanted, special_tokens=False)
    assert ids.tolist() == reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert model.generate(messages, 5) == model.tokenizer.decode(model.generate(ids, 5).tolist())
    cq.save(model, tmp_path / "model.safetensors")
    assert cq.load(tmp_path / "model.safetensors").apply_chat_template(messages, **more) == wanted
