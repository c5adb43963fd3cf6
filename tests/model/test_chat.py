"""Conversations as prompts, beside transformers' apply_chat_template: templates of many families
(tests/model/templates, written after what is public of them), probes of what a template may use, and strangers that
must end."""

import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import cq
from cq.model import chat
from cq.model.chat import render

TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in (Path(__file__).parent / "templates").iterdir()}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "How's the weather <here> & now?",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Ü"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"properties": {}}}},
]
DOCUMENTS = [{"title": "One", "text": "first"}, {"title": "Two", "text": "sécond"}]
USER, ANSWER = {"role": "user", "content": " Hi, 'you' <there>! "}, {"role": "assistant", "content": "Hello.\n"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Köln", "days": 2}},
}
CONVERSATIONS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "several": [USER, ANSWER, {"role": "user", "content": "Well?"}],
    "answered": [{"role": "system", "content": "S"}, USER, ANSWER],
    "thinking": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}, USER],
    "reasoning": [USER, {"role": "assistant", "content": "Yes", "reasoning_content": "hm"}],
    "thought": [USER, {"role": "assistant", "content": "Yes", "thinking": "hm"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " Hi "}, {"type": "image"}]}],
    "none": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": '{"rain": true}', "tool_call_id": "abcdefghi"},
    ],
    "roles": [{"role": "developer", "content": "D"}, {"role": "critic", "content": "C"}],
}
ARGUMENTS = {
    "ask": dict(add_generation_prompt=True),
    "end": dict(add_generation_prompt=False),
    "tools": dict(add_generation_prompt=True, tools=TOOLS),
    "documents": dict(add_generation_prompt=True, documents=DOCUMENTS),
    "more": dict(
        add_generation_prompt=True, enable_thinking=False, controls={"length": "short"}, date_string="1 May 2024"
    ),
    "go on": dict(add_generation_prompt=False, continue_final_message=True),
}


@pytest.fixture(scope="module")
def theirs():
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS.values())}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)

    def apply(template, messages, **arguments) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)

    return apply


def compare(theirs, template, messages, **arguments) -> str | None:
    """Ours, which must be theirs, or fail where they fail."""
    try:
        wanted = theirs(template, messages, **arguments)
    except Exception:  # of any kind: a template's own, or jinja2's
        with pytest.raises(cq.CqError):
            render(template, messages, **TOKENS, **arguments)
        return None
    assert render(template, messages, **TOKENS, **arguments) == wanted
    return wanted


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_give_what_transformers_gives(theirs, name):
    found = [
        compare(theirs, TEMPLATES[name], messages, **arguments)
        for messages in CONVERSATIONS.values()
        for arguments in ARGUMENTS.values()
    ]
    assert sum(text is not None for text in found) >= 12


def test_there_are_many_templates():
    assert len(TEMPLATES) >= 30 and len(set(TEMPLATES.values())) >= 30


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}|{{ tools | tojson(indent=4, sort_keys=true) }}",
        "{{ {'b': '<&>', 'a': 'ü'} | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}",
        "{{ [1, 2] | tojson(separators=(',', ':')) }}",
        "{{ strftime_now('%Y %B') }}",
        "a{% generation %}b{{ messages[0].content }}{% endgeneration %}c",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}[{{ sep_token }}]",
        "{% if tools %}T{% endif %}{% if tools is defined %}D{% endif %}{% if documents is none %}N{% endif %}",
        "{{ add_generation_prompt }}{{ messages is sequence }}{{ messages[0] is mapping }}{{ messages | length }}",
        "  {% if true %}\n  x\n  {% endif %}\n  {#- c -#}  y\n\n",
        "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
        "{{ messages[0].content.split(' ') }}{{ messages[0]['content'] | trim | upper | replace('H', 'J') }}",
        "{% macro m(a, b=2) %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(b=3, a=1) }}",
        "{{ messages | map(attribute='role') | join(',') }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ dict(a=1) }}{{ dict.fromkeys(['a']) }}{{ '%s-%d' | format('a', 3) }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}",
        "{{ messages.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.format.__globals__ }}",
        "{{ nothing.at.all }}",
        "{{ nothing }}{{ messages[0].nothing }}{{ messages[99] }}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "{{ 'é'.encode() }}",
        "{% for a, b in {'x': 1, 'y': [1, 2]} | items %}{{ loop.index }}{{ a }}{{ b }}{{ loop.last }}{% endfor %}",
        "{{ 'x' ~ 1 ~ none ~ true }}{{ 1.50 }}{{ 1e30 }}{{ -0.0 }}",
        "{{ messages[::-1][0].role }}{{ messages[-1].content[-3:] }}",
    ],
)
def test_what_a_template_may_use_is_transformers_own(theirs, template):
    for messages in (CONVERSATIONS["several"], CONVERSATIONS["call"]):
        for arguments in ({}, {"tools": TOOLS}):
            compare(theirs, template, messages, **ARGUMENTS["ask"] | arguments)


@pytest.mark.parametrize("field", [True, "content", "reasoning_content", "thinking", "nothing"])
@pytest.mark.parametrize("name", ["chatml", "qwen-3", "llama-2", "gemma-3", "zephyr"])
def test_the_last_message_goes_on_as_in_transformers(theirs, field, name):
    """Of trailing spaces, parts, reasoning and messages that the template leaves out as well."""
    for content in (
        "Yes",
        "Yes  ",
        "  ",
        [{"type": "text", "text": "A"}, {"type": "text", "text": "B "}],
        [{"type": "image"}],
        None,
    ):
        messages = [USER, {"role": "assistant", "content": content, "reasoning_content": "hm "}]
        compare(theirs, TEMPLATES[name], messages, add_generation_prompt=False, continue_final_message=field)
    with pytest.raises(cq.CqError, match="continue_final_message"):
        render(TEMPLATES[name], [USER], continue_final_message=True)


def test_messages_are_passed_on_whole_and_stay_as_they_are(theirs):
    given = [{"role": "x", "content": None, "extra": {"a": (1, 2.5, None)}, "flag": True, "odd": object(), 3: "three"}]
    before = repr(given)
    compare(theirs, "{{ messages }}", given, **ARGUMENTS["ask"])
    assert repr(given) == before
    import numpy as np

    compare(
        theirs, "{{ messages }}", [{"role": np.str_("x"), "n": np.int32(3), "b": np.bool_(False), "a": np.zeros(2)}]
    )


def test_named_templates_serve_tools():
    named = {"default": "plain", "tool_use": "tools"}
    assert render(named, [USER]) == "plain" and render(named, [USER], tools=TOOLS) == "tools"
    assert render({"default": "plain"}, [USER], tools=TOOLS) == "plain"
    with pytest.raises(cq.UnsupportedError, match="no chat template"):
        render({"rag": "x"}, [USER])


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "seconds or"),
        ("{{ 'a' * 3000000000 }}", "memory"),
        (
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "memory",
        ),
        ("{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}", ""),
        ("{{ 10 ** 2000000 }}", ""),
        ("{{ 10 ** (10 ** 10) }}", ""),
        ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "larger than"),
        ("{{ 'a'.ljust(3000000000) }}", "memory"),
        ("{{ '%3000000000d' | format(1) }}", ""),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", ""),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('x' * 1000000) }}", "TemplateError"),
        ("{{ lipsum(n=10000000) }}", ""),
        ("{{ (" * 3000 + "1" + ")" * 3000 + " }}", ""),
    ],
)
def test_strangers_end_soon_with_a_short_error(template, words, monkeypatch):
    monkeypatch.setattr(chat, "CPU_SECONDS", 2)
    monkeypatch.setattr(chat, "WALL_SECONDS", 200)  # on a busy machine two seconds of the processor take long
    began = time.monotonic()
    with pytest.raises(cq.CqError, match=f"^prompt: the checkpoint's chat template fails: .*{words}") as caught:
        render(template, [USER])
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
    assert time.monotonic() - began < chat.WALL_SECONDS
    assert render("{{ messages[0].role }}", [USER]) == "user"  # the next one is served


@pytest.mark.parametrize(
    "messages, arguments, words",
    [
        ([USER, "Hi"], {}, "message 1"),
        (0, {}, "messages: need a list of dicts, got 0"),
        (None, {}, "messages: need a list of dicts, got None"),
        (USER, {}, "messages: need a list of dicts, got {'role"),
        ("Hi", {}, "messages: need a list of dicts, got 'Hi'"),
        ([USER], {"tools": [print]}, "tools: need a list of JSON objects"),
        ([USER], {"documents": "x"}, "documents: need a list"),
        ([USER], {"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message: goes on"),
    ],
)
def test_bad_arguments_are_named(messages, arguments, words):
    with pytest.raises(cq.CqError, match=words):
        render("x", messages, **arguments)


def test_messages_without_end_are_refused():
    deep = {"role": "user"}
    for _ in range(5000):
        deep = {"role": deep}
    loop = {"role": "user"}
    loop["content"] = loop
    for message in (deep, loop):
        with pytest.raises(cq.CqError, match="nested too deeply"):
            render("x", [message])
