"""A program of its own: renders chat templates that come through its standard input, in jinja2's sandbox, with bounded
memory and processor time. Knows nothing of cq, which starts it (chat.py).

A request is 8 bytes of length and, marshalled, (template, variables, seconds, most bytes of the result); an answer one
byte, 0 for a result and 1 for an error, 8 bytes of length, and UTF-8."""

import json
import marshal
import resource
import sys
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    import jinja2

LONGEST_ERROR = 300  # characters


def environment() -> "jinja2.Environment":
    """The names and filters that transformers gives to templates."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %} stands for what is inside."""

        tags = {"generation"}

        def parse(self, parser: "jinja2.parser.Parser") -> "jinja2.nodes.Node":
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("inside"), [], [], body).set_lineno(line)

        def inside(self, caller: "Callable[[], str]") -> str:
            return caller()

    def refuse(message: object) -> NoReturn:
        raise jinja2.TemplateError(str(message))

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    room = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    room.filters["tojson"] = tojson
    room.globals["raise_exception"] = refuse
    room.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return room


def answer(
    room: "jinja2.Environment", cache: "dict[str, jinja2.Template]", template: str, variables: dict, most: int
) -> tuple[int, bytes]:
    """Of one request; the last template stays compiled."""
    try:
        if template not in cache:
            cache.clear()
            cache[template] = room.from_string(template)
        parts, size = [], 0
        for part in cache[template].generate(**variables):
            parts.append(part)
            size += len(part)
            if size > most:
                raise ValueError(f"its result is larger than {most} characters")
        result = "".join(parts).encode("utf-8", "surrogatepass")
        if len(result) > most:
            raise ValueError(f"its result is larger than {most} bytes")
        return 0, result
    except MemoryError:
        return 1, b"it takes too much memory"
    except Exception as error:  # of any kind: the template is a stranger's program
        words = " ".join(str(error)[: 2 * LONGEST_ERROR].split())[:LONGEST_ERROR]
        return 1, f"{type(error).__name__}: {words}".encode("utf-8", "replace")


def main() -> None:
    sys.path[:] = sys.argv[2].split(":")
    room = environment()
    cache: dict[str, jinja2.Template] = {}
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(8)) == 8:
        template, variables, seconds, most = marshal.loads(source.read(int.from_bytes(head, "little")))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        status, data = answer(room, cache, template, variables, most)
        target.write(bytes([status]) + len(data).to_bytes(8, "little") + data)
        target.flush()


if __name__ == "__main__":
    main()
