"""Every test that a page names exists, where the page says that it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_FILE = r"(?P<file>(?:\b[\w/]*/|\b)test_\w+\.py)(?:::(?P<within>test_\w+))?"
NAMED = re.compile(rf"{_FILE}|\b(?P<test>test_\w+[*…]?)")


@cache
def functions_by_file() -> dict[str, set[str]]:
    """Path under the repository: names of the functions in it, those of classes too."""
    return {
        path.relative_to(ROOT).as_posix(): {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        }
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def missing(text: str) -> Iterator[str]:
    """What ``text`` names and nobody finds."""
    files = functions_by_file()
    for found in NAMED.finditer(text):
        file, within, test = found["file"], found["within"], found["test"]
        if file:
            held = [names for path, names in files.items() if f"/{path}".endswith(f"/{file}")]
            if not held or (within and not any(within in names for names in held)):
                yield found[0]
        elif not any(_matches(test, names) for names in files.values()):
            yield found[0]


def _matches(test: str, names: set[str]) -> bool:
    return any(name.startswith(test[:-1]) for name in names) if test[-1] in "*…" else test in names


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    assert list(missing((ROOT / page).read_text())) == []


def test_a_name_that_is_nowhere_is_found() -> None:
    here = "tests/unit/test_docs.py"
    assert list(missing(f"`{here}::test_a_name_that_is_nowhere_is_found`, `test_every_test_that_*`")) == []
    gone = "gone"  # so that this file holds no such name itself
    bad = [f"{here}::test_{gone}", f"test_{gone}", f"tests/{gone}/test_docs.py", f"test_{gone}_*"]
    assert list(missing(" ".join(f"`{name}`" for name in bad))) == bad
