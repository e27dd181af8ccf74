"""The modes of the edge, as people type and read them."""

from __future__ import annotations

from collections.abc import Mapping

import click

from nextem.v1 import control_pb2

MODES: Mapping[str, control_pb2.Mode] = {
    "observe": control_pb2.MODE_OBSERVE,
    "advise": control_pb2.MODE_ADVISE,
    "approve": control_pb2.MODE_APPROVE,
    "automatic": control_pb2.MODE_AUTOMATIC,
}

MEANING: Mapping[str, str] = {
    "observe": "every command but stop is refused",
    "advise": "commands are checked and shown, and none is run",
    "approve": "each command waits for a person's yes",
    "automatic": "what passes the checks is run",
}

mode_option = click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    help="How much others may command.  [default: as it was, automatic at first]",
)


def name_of(mode: control_pb2.Mode) -> str:
    """Such as "approve"; "unspecified" for an edge that has no modes."""
    return control_pb2.Mode.Name(mode).removeprefix("MODE_").lower()
