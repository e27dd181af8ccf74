"""The limits file of an edge with keys is damaged, at its start and while a scan runs under steering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos_kit import NAME, WAIT_S, Lab, Microscope, final, nextem

from nextem.edge.control.limits import default_limits
from nextem.v1 import control_pb2 as pb

pytestmark = pytest.mark.timeout(180)

Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def unsign(path: Path) -> None:
    path.with_name(path.name + ".sig").unlink()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    nextem("keys", "init", "--home", str(home), "--operator", "anna")
    write(home)
    lab = Lab(home, microscope, limits=str(home / "limits.json"))
    yield lab
    lab.close()


def write(home: Path) -> None:
    (home / "limits.json").write_text(default_limits().to_json())
    nextem("keys", "sign", str(home / "limits.json"), "--home", str(home))


@pytest.mark.parametrize("damage", [truncate, flip, unsign, Path.unlink])
def test_damaged_while_a_scan_runs(lab: Lab, damage: Damage) -> None:
    """No write is taken any more, the scan that was checked is at the instrument, and stop ends it."""
    write(lab.home)
    lab.microscope.reset()
    lease = lab.lease()
    with lab.scanning(lease) as running:
        before = lab.microscope.state()
        damage(lab.home / "limits.json")
        for action in ({"move_stage": pb.Stage(z_nm=1.0)}, {"set_optics": before.optics}):
            refused = final(lab.submit(lease, **action))
            assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "limits_unreadable"), refused
            assert str(lab.home / "limits.json") in refused.detail
        assert lab.microscope.state().command_epoch == before.command_epoch
        assert lab.client.stop("anna", "enough", instrument=NAME).state == pb.COMMAND_STATE_DONE
        assert final(running).rule == "stopped"
    assert not lab.microscope.state().scanning
    write(lab.home)
    assert final(lab.submit(lease, move_stage=lab.microscope.state().stage)).state == pb.COMMAND_STATE_DONE
    lab.client.release_lease("anna", instrument=NAME)


def test_damaged_at_the_start(lab: Lab) -> None:
    write(lab.home)
    flip(lab.home / "limits.json")
    lab.edge.close()
    lab.edge.start()
    lab.client.heartbeat(NAME, timeout_s=WAIT_S)
    lease = lab.lease()
    before = lab.microscope.state()
    refused = final(lab.submit(lease, move_stage=pb.Stage(z_nm=1.0)))
    assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "limits_unreadable"), refused
    assert lab.microscope.state().stage == before.stage
    assert lab.client.stop("anna", "enough", instrument=NAME).state == pb.COMMAND_STATE_DONE
    assert "every command but stop will be refused" in lab.edge.log()
