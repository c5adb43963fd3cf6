"""What README, pages and docstrings show is run: Python blocks as they stand, one after another, and `cq` commands by
the command line itself, in a folder that holds the files which they name."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

from cq.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [page for page in PAGES if "```python" in page.read_text() or "```console" in page.read_text()]
MODULES = [path for path in sorted((ROOT / "cq").rglob("*.py")) if ">>> " in path.read_text()]


def run_commands(example) -> None:
    """Runs each line that begins with `$ cq`; one that ends with a backslash goes on in the next."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        if line.startswith("$ cq"):
            given = shlex.split(line.removeprefix("$ cq"), comments=True)
            result = CliRunner().invoke(main, given, standalone_mode=False)
            assert not result.exception and not result.return_value, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.fixture
def names(verses) -> dict:
    return {"texts": verses[:16], "documents": verses[40:44], "pairs": list(zip(verses[16:24], verses[24:32]))}


@pytest.mark.timeout(1200)  # a page compares, trains and searches: minutes on portable kernels beside other work
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page, workplace, names, monkeypatch, short_turns):
    monkeypatch.chdir(workplace)
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="console", evaluator=run_commands)]
    document = Sybil(parsers=parsers).parse(page)
    document.namespace.update(names)
    with contextlib.redirect_stdout(io.StringIO()):
        for example in document.examples():
            example.evaluate()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_docstrings_show_is_true(module, workplace, names, monkeypatch):
    monkeypatch.chdir(workplace)
    document = PythonDocStringDocument.parse(str(module), DocTestParser())
    document.namespace.update(names)
    for example in document.examples():
        example.evaluate()


def test_something_is_shown():
    assert len(SHOWN) >= 5 and MODULES


MARKDOWN = [
    *ROOT.glob("*.md"),
    *(page for room in ("docs", "src", "bench", "examples") for page in (ROOT / room).glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
