"""The edge's disk is full while it is steered: a real file system with no block left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kit import Lab, Microscope, final, until

from nextem.v1 import control_pb2 as pb

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system, which takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def lab(tmp_path: Path, microscope: Microscope, disk: Path) -> Iterator[Lab]:
    microscope.reset()
    lab = Lab(tmp_path / "lab", microscope, home=str(disk))
    yield lab
    lab.close()


def fill(disk: Path) -> Path:
    """Returns the file that takes all that was left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return filler


def test_no_write_reaches_the_instrument_and_stop_does(lab: Lab, disk: Path) -> None:
    lease = lab.lease()
    with lab.scanning(lease) as running:
        filler = fill(disk)
        before = lab.microscope.state()
        for action in ({"move_stage": pb.Stage(z_nm=1.0)}, {"set_optics": before.optics}):
            refused = final(lab.submit(lease, **action))
            assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "journal"), refused
            assert "full" in refused.detail
        assert lab.microscope.state().command_epoch == before.command_epoch
        other = lab.client.request_lease("ben", 60_000, scopes=[pb.LEASE_SCOPE_DETECTOR])
        assert other.refused
        stopped = lab.client.stop("anna", "the disk is full")
        assert stopped.state == pb.COMMAND_STATE_DONE
        until(lambda: not lab.microscope.state().scanning, "the scan has ended")
        filler.unlink()
        assert final(running).rule == "stopped"  # with how many frames were stored, which takes room
    assert lab.edge.log().count("SpoolFull: FINISHED waits") <= 1  # it may find room in the last page
    lease = lab.lease()
    moved = final(lab.submit(lease, move_stage=pb.Stage(z_nm=2.0)))
    assert moved.state == pb.COMMAND_STATE_DONE, moved
    until(lambda: stopped.command_id in audited(lab), "the stop is in the audit")


def audited(lab: Lab) -> set[str]:
    """Every command whose outcome is on record; the chain is whole, or this raises."""
    return {event.outcome.command_id for event in lab.audit()[0]}
