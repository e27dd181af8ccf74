"""The example of docs/bring-your-microscope.md works as it stands there."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from driver_kit import FakeColumn

from nextem.edge.control.drivers.column import Column, ColumnDriver
from nextem.edge.control.drivers.conformance import CHECKS, Bench

PAGE = Path(__file__).parents[4] / "docs" / "bring-your-microscope.md"


class Microscope(socketserver.ThreadingTCPServer):
    """What the page's column speaks to."""

    daemon_threads = True

    def __init__(self) -> None:
        self.column = FakeColumn()
        super().__init__(("127.0.0.1", 0), _Line)


class _Line(socketserver.StreamRequestHandler):
    server: Microscope

    def handle(self) -> None:
        column, words = self.server.column, self.rfile.readline().decode().split()
        names = {
            "Y": "stage.y_nm",
            "X": "stage.x_nm",
            "DF": "optics.defocus_nm",
            "BB": "optics.beam_blanked",
        }
        reply = "ok"
        match words:
            case ["GET", name]:
                reply = repr(float(column.values[names[name]]))
            case ["SET", name, value]:
                column.begin({names[name]: float(value)})
            case ["MOVING?"]:
                reply = str(int(column.moving()))
            case ["BLANK"]:
                column.blank()
            case ["HALT"]:
                column.halt()
        self.wfile.write(f"{reply}\n".encode())


@pytest.fixture
def column() -> Iterator[Column]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("page")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    with Microscope() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield module.MyColumn(*server.server_address)
        server.shutdown()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_pages_microscope_conforms(column: Column, check: Callable[[Bench], None]) -> None:
    check(Bench(ColumnDriver(column)))


def test_the_page_names_tests_that_exist() -> None:
    text = PAGE.read_text()
    here = Path(__file__).parent
    for name in re.findall(r"`(?:\.\./)?(test_\w+\.py)`", text):
        assert (here / name).exists() or (here.parent / name).exists(), name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (PAGE.parents[1] / path).exists(), path
