"""How a checkpoint converses: its template, which makes a prompt of messages, and the tokens that end an answer. Knows no files."""
import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..errors import CqError, UnsupportedError

MAX_TEMPLATE = 1 << 20  # characters; the longest in the wild are some ten thousand


@dataclass(frozen=True)
class Chat:
    """template: Jinja source, or None. bos_token, eos_token: as the template writes them. stop_tokens: ids that end a text."""
    template: str | None = None
    bos_token: str = ""
    eos_token: str = ""
    stop_tokens: tuple[int, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self) | {"stop_tokens": list(self.stop_tokens)}

    def render(self, messages: Iterable[dict]) -> str:
        """The prompt for an answer to messages {"role": …, "content": …}, special tokens included. The template runs in jinja2's
        sandbox, where it sees nothing but these and cannot change them. Raises CqError for messages that are none, a template
        that fails or refuses them; UnsupportedError without a template or without jinja2."""
        if self.template is None:
            raise UnsupportedError("messages: this checkpoint has no chat template; give the prompt as a text")
        messages = _checked(messages)
        try:
            jinja2, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
        except ImportError:
            raise UnsupportedError("a chat template needs the package jinja2: pip install 'cquant[chat]'") from None

        def refuse(message: str):
            raise jinja2.TemplateError(message)
        room = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                     extensions=["jinja2.ext.loopcontrols"])
        room.globals["raise_exception"] = refuse
        try:
            return room.from_string(self.template).render(messages=messages, add_generation_prompt=True,
                                                          bos_token=self.bos_token, eos_token=self.eos_token)
        except jinja2.TemplateError as error:
            raise CqError(f"messages: the checkpoint's chat template refuses them: {error}") from None
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError,
                OverflowError) as error:
            raise CqError(f"messages: the checkpoint's chat template fails: {type(error).__name__}: {error}") from None


def is_conversation(prompt) -> bool:
    """Whether this is a list of messages."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], dict)


def _checked(messages) -> list[dict]:
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise CqError(f'messages[{i}]: need {{"role": str, "content": str}}, got {message!r}')
    return [dict(message) for message in messages]
