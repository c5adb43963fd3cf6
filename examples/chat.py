"""Talk to a language model from a GGUF file, quantized to int8 in memory.

    python examples/chat.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs the extras cquant[gguf,chat]. An empty line ends the conversation.
"""

import sys

import cq


def main(model: str, max_new_tokens: int = 200) -> None:
    assistant = cq.quantize(cq.load(model), cq.Dynamic())
    conversation: list[dict[str, str]] = []
    while question := input("> "):
        conversation.append({"role": "user", "content": question})
        answer = ""
        for piece in assistant.stream(conversation, max_new_tokens=max_new_tokens):
            print(piece, end="", flush=True)
            answer += piece
        print()
        conversation.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(sys.argv[1])
