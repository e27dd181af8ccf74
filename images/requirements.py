"""Prints what some of NexTEM's extras need, one requirement a line.

The images install that before NexTEM itself, so that a change of our code leaves the large layer as it was.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OURS = re.compile(r"nextem\[([\w,-]+)\]")


def closure(project: dict[str, object], names: list[str]) -> list[str]:
    """The requirements of the project and its extras ``names``, with the extras that those name.

    Raises:
        KeyError: the project has no such extra.
    """
    extras = project["optional-dependencies"]
    found, todo = list(project["dependencies"]), list(names)
    while todo:
        for requirement in extras[todo.pop()]:
            ours = _OURS.fullmatch(requirement)
            (todo.extend(ours[1].split(",")) if ours else found.append(requirement))
    return sorted(set(found))


if __name__ == "__main__":
    described = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print(*closure(described, sys.argv[1].split(",")), sep="\n")
