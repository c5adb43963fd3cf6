"""`cq generate`: the library's text on stdout, as it comes; one sentence for each failure."""

import numpy as np
import pytest
from click.testing import CliRunner

import cq
from cq.cli import main


def run(*arguments, code=0, stdin=None) -> str:
    result = CliRunner().invoke(main, ["generate", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output + str(result.exception)
    if code:
        assert result.stderr.startswith("cq: ") and result.stderr.count("\n") == 1 and result.stdout == ""
    return result.stderr if code else result.stdout


def test_the_text_is_the_librarys(tiny_lm):
    model = cq.load(tiny_lm)
    assert run(tiny_lm, "To be", "--max-new-tokens", 12) == model.generate("To be", 12) + "\n"
    assert run(tiny_lm, "-", "--max-new-tokens", 12, stdin="To be") == model.generate("To be", 12) + "\n"
    dynamic, drawn = (
        cq.quantize(model, cq.Dynamic()),
        dict(temperature=1.5, top_k=9, top_p=0.9, seed=3, repetition_penalty=1.1),
    )
    options = [f"--{name.replace('_', '-')}={value}" for name, value in drawn.items()]
    text = dynamic.generate("To be", 20, **drawn)
    assert run(tiny_lm, "To be", "--strategy", "dynamic", "--max-new-tokens", 20, *options) == text + "\n"
    stopped = run(tiny_lm, "To be", "--strategy", "dynamic", "--max-new-tokens", 20, *options, "--stop", text[3:5])
    assert stopped == text[: text.index(text[3:5])] + "\n"


def test_a_chat_template_makes_a_question_of_the_prompt(tiny_lm, tmp_path):
    bare = cq.load(tiny_lm)
    config = cq.Config(**bare.config.to_dict() | dict(chat_template="[{{ messages[0].content }}]"))
    weights = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for name, shape in config.shapes().items()
    }
    cq.save(cq.quantize(cq.Transformer(config, weights, bare.tokenizer), cq.Dynamic()), tmp_path / "chat.safetensors")
    model = cq.load(tmp_path / "chat.safetensors")
    answer, raw = (run(tmp_path / "chat.safetensors", "Hi", "--max-new-tokens", 9, *more) for more in ((), ("--raw",)))
    assert answer == model.generate("[Hi]", 9) + "\n" and raw == model.generate("Hi", 9) + "\n"


@pytest.mark.parametrize(
    "more, message",
    [
        (("--top-k", "3"), "top_k"),
        (("--temperature", "1", "--top-p", "2"), "top_p"),
        (("--temperature", "-1"), "temperature"),
    ],
)
def test_failures_are_one_sentence(tiny_lm, more, message):
    assert message in run(tiny_lm, "Hi", *more, code=1)


def test_models_that_do_not_speak_and_models_that_are_none(tiny_encoder, tmp_path):
    assert "does not continue texts" in run(tiny_encoder, "Hi", code=1)
    assert "no such file" in run(tmp_path / "none.gguf", "Hi", code=1)
    assert "--strategy" in run(tiny_encoder, "Hi", "--strategy", "static", code=2)
