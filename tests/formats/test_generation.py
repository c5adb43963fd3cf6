"""What a folder says of how texts begin and end and of chats, as transformers writes it and as others do."""

import json

import pytest
from transformers import GenerationConfig

from cq.errors import FormatError
from cq.formats.huggingface import read_folder


def change(file, **entries) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | entries))


def said(folder):
    config = read_folder(folder)[0]
    return config.bos_token_id, config.eos_token_ids, config.chat_template


def test_ids_come_from_config_json_unless_generation_config_says_others(llama):
    (llama / "generation_config.json").unlink(missing_ok=True)
    assert said(llama) == (1, (2,), None)
    change(llama / "config.json", bos_token_id=None, eos_token_id=[5, 6, 5])
    assert said(llama) == (None, (5, 6), None)
    GenerationConfig(bos_token_id=3, eos_token_id=[7, 8]).save_pretrained(llama)
    assert said(llama) == (3, (7, 8), None)


def test_ids_that_no_text_can_hold_are_left_out(llama):
    (llama / "generation_config.json").unlink(missing_ok=True)
    change(llama / "config.json", bos_token_id=40, eos_token_id=[50256, 39, -1])
    assert said(llama) == (None, (39,), None)


def test_chat_templates(llama):
    change(llama / "tokenizer_config.json", chat_template="{{ old }}")
    assert said(llama)[2] == "{{ old }}"
    named = [dict(name="tool_use", template="x"), dict(name="default", template="ü")]
    change(llama / "tokenizer_config.json", chat_template=named)
    assert said(llama)[2] == {"tool_use": "x", "default": "ü"}
    change(llama / "tokenizer_config.json", chat_template=named[1:])
    assert said(llama)[2] == "ü"
    (llama / "chat_template.jinja").write_text("{{ new ü }}", encoding="utf-8")
    assert said(llama)[2] == "{{ new ü }}"


@pytest.mark.parametrize(
    "file, data, words",
    [
        ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id must be a token id or a list"),
        ("generation_config.json", b'{"bos_token_id": [1]}', "bos_token_id must be a token id, got"),
        ("generation_config.json", b'{"eos_token_id": [true]}', "eos_token_id"),
        ("generation_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be a string"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "default", "template": 1}]}',
            "chat_template must be a string",
        ),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
        ("chat_template.jinja", b"a" * (1 << 21), "at most"),
    ],
)
def test_damage_is_named(llama, file, data, words):
    (llama / file).write_bytes(data)
    with pytest.raises(FormatError, match=f"{file}.*{words}"):
        read_folder(llama)


def test_encoders_have_none(bert):
    change(bert / "config.json", bos_token_id=1, eos_token_id=2)
    assert said(bert) == (None, (), None)
