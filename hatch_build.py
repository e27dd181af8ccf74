"""Build hook: generates the Python stubs of the contract from ``protos/`` before the package is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> None:
    """Writes ``*_pb2.py``, ``*_pb2.pyi``, ``*_pb2_grpc.py`` beside every ``.proto`` under ``root/protos``."""
    import grpc_tools
    from grpc_tools import protoc

    protos = root / "protos"
    sources = sorted(str(path) for path in protos.rglob("*.proto"))
    include = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={protos}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{protos}", f"-I{include}", *outputs, *sources])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}")


class StubsHook(BuildHookInterface[Any]):
    """Runs :func:`generate`; hatchling calls it for wheels and for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
