"""A conversation as a prompt, by the template that a checkpoint brings. Knows no files and no models.

A template is a stranger's program, so it runs in a process of its own (chat_room.py) with bounded time and memory, in
jinja2's sandbox; it sees the names that transformers gives it and nothing else."""

import atexit
import importlib.util
import marshal
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

from ..errors import CqError, UnsupportedError
from .inputs import is_iterable

CPU_SECONDS, WALL_SECONDS = 5, 60  # of one template; the latter where the machine is busy with other things
MEMORY = 512 << 20  # bytes of the process in which templates run
MAX_PROMPT = 16 << 20  # bytes of a prompt, far more than any model's positions
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which messages carry it


def is_conversation(prompt: object) -> TypeGuard[list[dict]]:
    """Whether this is a list of messages."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping)


def render(
    template: str | dict[str, str] | None,
    messages: list[dict],
    bos_token: str | None = None,
    eos_token: str | None = None,
    *,
    tools: list[dict] | None = None,
    documents: list[dict] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    **variables: object,
) -> str:
    """The prompt for an answer to messages, special tokens included, as transformers' apply_chat_template makes it of
    the same arguments. template: Jinja, or several by name, of which "tool_use" serves where there are tools, else
    "default". messages: dicts of any keys; those whose value is None are left out. variables: more names, the other
    special tokens among them.

    Raises CqError for messages that are none, and a template that fails, refuses them or takes too much time or memory;
    UnsupportedError without a template or jinja2."""
    template = _chosen(template, tools)
    if not is_iterable(messages):
        raise CqError(f"messages: need a list of dicts, got {messages!r:.200}")
    messages = [_message(message, i) for i, message in enumerate(messages)]
    for name, items in (("tools", tools), ("documents", documents)):
        if items is not None and not (isinstance(items, (list, tuple)) and all(isinstance(x, Mapping) for x in items)):
            raise CqError(f"{name}: need a list of JSON objects, got {items!r:.200}")
    if continue_final_message and add_generation_prompt:
        raise CqError("continue_final_message: goes on with the last message, which add_generation_prompt would end")
    final = _tag(template, messages, continue_final_message) if continue_final_message else None
    tokens = {name: token for name, token in (("bos_token", bos_token), ("eos_token", eos_token)) if token is not None}
    more = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
    text = _ROOM.render(template, {"messages": messages} | _plain(tokens | variables | more))
    return text if final is None else _untagged(text, final)


def _chosen(template: str | dict[str, str] | None, tools: list[dict] | None) -> str:
    if isinstance(template, dict):
        template = template.get("tool_use" if tools is not None and "tool_use" in template else "default")
    if template is None:
        raise UnsupportedError(
            "prompt: this checkpoint has no chat template for a conversation; give the prompt as a text"
        )
    return template


def _message(message: object, i: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise CqError(f'prompt: message {i}: need a dict such as {{"role": …, "content": …}}, got {message!r:.200}')
    try:
        found: dict[str, Any] = _plain({key: value for key, value in message.items() if value is not None})
    except RecursionError:
        raise CqError(f"prompt: message {i}: nested too deeply") from None
    reasoning = next((found[key] for key in _REASONING if found.get(key) is not None), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _plain(value: object) -> Any:
    """Made of nothing but what JSON has, and tuples; anything else is only named, as transformers does it."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else _plain(list(value))
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    return f"<{type(value).__name__}>"


def _tag(template: str, messages: list[dict], field: bool | str) -> str:
    """Marks where the last message ends; its text."""
    field = field if isinstance(field, str) else "content"
    final: str | list | tuple | None = messages[-1].get(field) if messages else None
    if final is None:
        raise CqError(f"continue_final_message: the last message has no {field!r} to go on with")
    fields = [field]
    if field in _REASONING:
        fields = [name for name in _REASONING if messages[-1].get(name) == final]
    if not any(name in template for name in fields):
        raise CqError(f"continue_final_message: the chat template reads no {field!r}")
    if isinstance(final, (list, tuple)):
        part = next((part for part in reversed(final) if isinstance(part, dict) and "text" in part), None)
        if part is None:
            raise CqError("continue_final_message: the last message has no text to go on with")
        text: str = part["text"]
        part["text"] = text + _TAG
        return text
    for name in fields:
        messages[-1][name] = final + _TAG
    return final


def _untagged(text: str, final: str) -> str:
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise CqError("continue_final_message: the chat template does not show the last message as it is")
    whole = text[at : at + len(_TAG)] == _TAG
    return text[:at] if whole else text[:at].rstrip()  # the template trimmed it


class _Room:
    """The process in which templates run, started when the first comes; one template at a time."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """The process is the parent's; this one starts its own."""
        self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                pipe.close()

    def render(self, template: str, variables: dict) -> str:
        if importlib.util.find_spec("jinja2") is None:
            raise UnsupportedError("a chat template needs the package jinja2: pip install 'cquant[chat]'")
        try:
            request = marshal.dumps((template, variables, CPU_SECONDS, MAX_PROMPT))
        except ValueError:
            raise CqError("prompt: messages are nested too deeply") from None
        with self._lock:
            try:
                status, answer = self._ask(request)
            except BaseException:  # an interrupt too: what the process would answer is of no use to the next
                self.close()
                raise
        if status != 0:
            raise CqError(f"prompt: the checkpoint's chat template fails: {answer}")
        return answer

    def _ask(self, request: bytes) -> tuple[int, str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _started()
        to, source = _pipes(self._process)
        deadline = time.monotonic() + WALL_SECONDS
        try:
            to.write(len(request).to_bytes(8, "little") + request)
            to.flush()
            head = _read(source, 9, deadline)
            return head[0], _read(source, int.from_bytes(head[1:], "little"), deadline).decode("utf-8", "surrogatepass")
        except (BrokenPipeError, EOFError):
            self.close()
            return 1, f"it takes more than {CPU_SECONDS} seconds or {MEMORY >> 20} MiB"
        except TimeoutError:
            self.close()
            return 1, f"it takes more than {WALL_SECONDS} seconds"


def _read(source: IO[bytes], count: int, deadline: float) -> bytes:
    parts, file = [], source.fileno()
    while count:
        if not select.select([file], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError
        parts.append(os.read(file, min(count, 1 << 20)))
        if not parts[-1]:
            raise EOFError
        count -= len(parts[-1])
    return b"".join(parts)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """To its input, and from its output."""
    assert process.stdin is not None and process.stdout is not None, "_started asks for both"
    return process.stdin, process.stdout


def _started() -> subprocess.Popen[bytes]:
    """A Python that finds jinja2 where this one does, and nothing of cq."""
    program = Path(__file__).with_name("chat_room.py")
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-B", str(program), str(MEMORY), paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the one who waits
            bufsize=-1,
        )
    except OSError as error:
        raise CqError(f"prompt: the chat template's process does not start: {error}") from None


_ROOM = _Room()
