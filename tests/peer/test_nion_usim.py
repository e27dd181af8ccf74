"""Nion's own simulated microscope, which we did not write, obeys our adapter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peer import PeerUnavailable, peer_bin

from nextem.edge.control.driver import CapabilityMissing
from nextem.edge.control.drivers.conformance import CHECKS, Bench
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.v1 import control_pb2 as pb

# The first test makes the peer's environment.
pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
ROOTS = ("protos", "edge")


class Nion:
    """The microscope in its own process: our driver to it, and what it says itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.driver = GrpcDriver(f"127.0.0.1:{int(process.stdout.readline())}")

    def truth(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@pytest.fixture(scope="module")
def nion() -> Iterator[Nion]:
    try:
        programs = peer_bin(HERE / "nion.txt")
    except PeerUnavailable as error:
        pytest.skip(str(error))
    path = os.pathsep.join(str(HERE.parents[1] / root) for root in ROOTS)
    with subprocess.Popen(
        [str(programs / "python"), str(HERE / "nion_microscope.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        microscope = Nion(process)
        try:
            yield microscope
        finally:
            microscope.driver.close()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(nion: Nion, check: Callable[[Bench], None]) -> None:
    check(Bench(nion.driver))


def test_the_stage_goes_where_it_is_sent(nion: Nion) -> None:
    epoch = nion.driver.get_state().command_epoch + 1
    state = nion.driver.move_stage(epoch, pb.Stage(y_nm=120.0, x_nm=-80.0))
    assert (state.stage.y_nm, state.stage.x_nm) == pytest.approx((120.0, -80.0))
    assert nion.truth()["stage_m"] == pytest.approx([120e-9, -80e-9])
    with pytest.raises(CapabilityMissing, match=r"nion cannot do stage\.z_nm"):
        nion.driver.move_stage(epoch + 1, pb.Stage(y_nm=120.0, x_nm=-80.0, z_nm=5.0))


def test_defocus_coma_and_blanker_are_set(nion: Nion) -> None:
    state = nion.driver.get_state()
    wanted = state.optics
    wanted.defocus_nm, wanted.coma_a_nm, wanted.coma_b_nm, wanted.beam_blanked = -25.0, 30.0, -12.0, True
    told = nion.driver.set_optics(state.command_epoch + 1, wanted).optics
    assert (told.defocus_nm, told.coma_b_nm, told.beam_blanked) == pytest.approx((-25.0, -12.0, True))
    truth = nion.truth()
    assert truth["C10"] == pytest.approx(-25e-9)
    assert truth["C21"] == pytest.approx([90e-9, -36e-9])  # Krivanek's C21 is three times B2
    assert truth["blanked"] == 1.0
