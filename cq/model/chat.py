"""A conversation as a prompt, by the template that a checkpoint brings. Knows no files and no models."""

import importlib

from ..errors import CqError, UnsupportedError


def is_conversation(prompt) -> bool:
    """Whether this is a list of messages."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], dict)


def render(template: str | None, messages: list[dict], bos_token: str, eos_token: str) -> str:
    """The prompt for an answer to messages {"role": …, "content": …}, special tokens included. template: Jinja, as in
    Hugging Face's tokenizers; it runs in jinja2's sandbox, where it sees nothing but the arguments and cannot change
    them. Raises CqError for messages that are none, and a template that fails or refuses them; UnsupportedError without
    a template or jinja2."""
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise CqError(f'prompt: message {i}: need {{"role": str, "content": str}}, got {message!r}')
    if template is None:
        raise UnsupportedError(
            "prompt: this checkpoint has no chat template for a conversation; give the prompt as a text"
        )
    try:
        jinja2, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
    except ImportError:
        raise UnsupportedError("a chat template needs the package jinja2: pip install 'cquant[chat]'") from None

    def refuse(message):
        raise jinja2.TemplateError(str(message))

    room = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    room.globals["raise_exception"] = refuse
    try:
        return room.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=True,
            bos_token=bos_token,
            eos_token=eos_token,
        )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:  # of any kind: the template is a stranger's program
        raise CqError(f"prompt: the checkpoint's chat template fails: {type(error).__name__}: {error}") from None
