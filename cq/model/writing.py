"""What people do with a language model: generate, stream, put a conversation into its template. A part of Transformer
of its own; knows no layers."""

from collections.abc import Iterable, Iterator
from typing import Any, overload

import numpy as np

from ..errors import CqError
from .chat import is_conversation
from .generate import Writer, answers, render_for

Stops = str | int | Iterable[str | int]


class Writing:
    """The methods of Transformer that continue texts."""

    @overload
    def generate(
        self: Writer,
        prompt: str | list[dict],
        max_new_tokens: int | None = None,
        *,
        stop: Stops = (),
        cache: str | None = None,
        **sampling: object,
    ) -> str: ...
    @overload
    def generate(
        self: Writer,
        prompt: np.ndarray,
        max_new_tokens: int | None = None,
        *,
        stop: Stops = (),
        cache: str | None = None,
        **sampling: object,
    ) -> np.ndarray: ...
    @overload
    def generate(
        self: Writer,
        prompt: list | tuple,
        max_new_tokens: int | None = None,
        *,
        stop: Stops = (),
        cache: str | None = None,
        **sampling: object,
    ) -> list: ...
    def generate(
        self: Writer,
        prompt: str | np.ndarray | list | tuple,
        max_new_tokens: int | None = None,
        *,
        stop: Stops = (),
        cache: str | None = None,
        **sampling: object,
    ) -> str | np.ndarray | list:
        """What the model says after `prompt`: a text → the text that follows; a conversation, a list of messages
        {"role": …, "content": …}, which the checkpoint's chat template makes a prompt of → the answer; a 1-D integer
        array of ids → the ids that follow, int32; a list of such prompts → a list. Prompts of different lengths run
        together, without padding, and none changes another's result.

        It ends after max_new_tokens (None: as many as the checkpoint's generation_config.json says, else 128), with the
        model's positions, with a token that the checkpoint says ends a text, or with one of `stop`, texts or token ids;
        none of these is part of the result. A text of `stop` may hold special tokens, "<|im_end|>". A conversation's
        answer also ends with a token that by its text ends a turn.

        sampling: fields of cq.model.sampling.Sampling by name, which says what they do: temperature (0: the best token
        each time), top_k, top_p, min_p, repetition_penalty, seed, no_repeat_ngram_size, min_new_tokens, min_length,
        suppress_tokens, begin_suppress_tokens, bad_words_ids. What is not given or None is as generation_config.json
        says, as in transformers; else off.

        Keys and values of all tokens are kept, and grow by doubling. cache: "float32", "int8" (symmetric, a scale for
        each token and head; a static model keeps its own codes), or None, what the model's attention computes in: then
        a quantized model's scores have the bits of a whole forward pass, unless a scheme takes one range for all tokens
        of a call.

        Raises UnsupportedError where the model does not continue texts, has no chat template for a conversation, or
        jinja2 is missing for it; CqError for bad arguments, a prompt that leaves no room, a template that fails or
        takes too long, and where a score becomes NaN or Inf."""
        one = isinstance(prompt, (str, np.ndarray)) or is_conversation(prompt)
        if not one and not isinstance(prompt, (list, tuple)):
            raise CqError(
                f"prompt: need a text, a conversation, a 1-D integer array, or a list of such, got "
                f"{type(prompt).__name__}"
            )
        prompts = [prompt] if one else list(prompt)
        pieces: list[list] = [[] for _ in prompts]
        for i, piece in answers(self, prompts, max_new_tokens, sampling, stop, cache):
            pieces[i].append(piece)
        results = [
            np.array(found, np.int32) if isinstance(given, np.ndarray) else "".join(found)
            for given, found in zip(prompts, pieces)
        ]
        return results[0] if one else results

    def stream(
        self: Writer,
        prompt: str | np.ndarray | list[dict],
        max_new_tokens: int | None = None,
        *,
        stop: Stops = (),
        cache: str | None = None,
        **sampling: object,
    ) -> Iterator:
        """`generate` of one prompt, as it comes: pieces of text, whole characters each, or ids for a prompt of ids.
        Arguments are checked at once."""
        if not isinstance(prompt, (str, np.ndarray)) and not is_conversation(prompt):
            raise CqError(f"prompt: need one text, conversation or 1-D integer array, got {type(prompt).__name__}")
        found = answers(self, [prompt], max_new_tokens, sampling, stop, cache)
        return (piece for _, piece in found)

    def apply_chat_template(
        self: Writer,
        messages: list[dict],
        *,
        tools: list[dict] | None = None,
        documents: list[dict] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt that the checkpoint's chat template makes of a conversation, as transformers' method of this name
        does; model.generate(model.tokenize(prompt, special_tokens=False)) answers it.

        messages: dicts of "role" and whatever the template reads: "content" (a text, a list of parts, None),
        "tool_calls" and so on. tools, documents: JSON objects for the template. add_generation_prompt: begin an answer;
        continue_final_message: leave the last message open instead. variables: further names that the template sees.
        Raises as `generate`."""
        more = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        return render_for(self, messages, continue_final_message=continue_final_message, **more | variables)
