"""The network between the edge and the steering service is cut while the instrument is led."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from chaos_kit import NAME, Lab, Microscope, final, nextem, until
from net_kit import Network, NoNetwork
from wire_kit import BOTH, FROM_EDGE, TO_EDGE, Wire

from nextem.v1 import control_pb2 as pb

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), microscope)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def far_lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    try:
        network = Network()
    except NoNetwork as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("far")
    hosts = [word for host in (network.for_edge, network.for_people) for word in ("--host", host)]
    nextem("keys", "init", "--home", str(home), "--operator", "anna", *hosts)
    lab = Lab(home, microscope, wire=network)
    yield lab
    lab.close()


@pytest.mark.parametrize(
    ("doing", "ways"),
    [
        pytest.param("scanning", BOTH, id="scan-both"),
        pytest.param("moving", BOTH, id="move-both"),
        pytest.param("scanning", (TO_EDGE,), id="scan-to-edge"),
        pytest.param("moving", (FROM_EDGE,), id="move-from-edge"),
    ],
)
def test_a_partition_leaves_a_safe_instrument_and_nothing_old_runs(
    lab: Lab, doing: str, ways: tuple[str, ...]
) -> None:
    """Half-open too: one direction is lost, and no end of a connection is told to anybody."""
    partition(lab, doing, ways)


@pytest.mark.parametrize(
    ("doing", "ways"),
    [
        pytest.param("scanning", BOTH, id="scan-both"),
        pytest.param("moving", (FROM_EDGE,), id="move-from-edge"),
        pytest.param("scanning", (TO_EDGE,), id="scan-to-edge"),
    ],
)
def test_a_partition_of_a_real_network_does_so_too(far_lab: Lab, doing: str, ways: tuple[str, ...]) -> None:
    """With keys, over two addresses; the kernel loses every packet, the first ones of new connections too."""
    partition(far_lab, doing, ways)


def partition(lab: Lab, doing: str, ways: tuple[str, ...]) -> None:
    lab.microscope.reset()
    lease, wire = lab.lease(), lab.wire
    assert isinstance(wire, Wire | Network)
    running = getattr(lab, doing)(lease)
    wire.hold(*ways)
    late = lab.submit(lease, move_stage=pb.Stage(z_nm=50.0))  # on the way for as long as the network is away
    safe = lab.until_safe()
    wire.release()

    ended, refused = final(running), final(late)
    assert (ended.state, ended.rule) == (pb.COMMAND_STATE_FAILED, "stopped")
    assert refused.state == pb.COMMAND_STATE_REJECTED, refused
    now = lab.microscope.state()
    assert (now.stage, now.command_epoch, now.scanning) == (safe.stage, safe.command_epoch, False)
    assert now.optics.beam_blanked

    lease = lab.lease()  # and it can be led again
    lab.unblank(lease)
    lab.client.release_lease("anna", instrument=NAME)
    told_safe_state(lab)


def told_safe_state(lab: Lab) -> None:
    """The audit has it, with the reason: not before the bound of the edge's own clock."""
    reasons = [e.command.stop.reason for e in lab.audit()[0] if e.command.stop.safe_state]
    silent_s = re.search(r"not heard for ([\d.]+) s", reasons[-1])
    assert silent_s is not None, reasons
    assert float(silent_s[1]) >= 6.0
    print(reasons[-1])


def test_a_short_silence_changes_nothing(lab: Lab) -> None:
    """What the network held up for less than the bound arrives late, and steering goes on."""
    lab.microscope.reset()
    lease, wire = lab.lease(), lab.wire
    assert isinstance(wire, Wire)
    with lab.scanning(lease):
        wire.hold(*BOTH)
        sent = lab.microscope.state().frames_sent
        until(lambda: lab.microscope.state().frames_sent > sent + 100, "a second of frames")
        wire.release()
        assert lab.client.stop("anna", "enough").state == pb.COMMAND_STATE_DONE
    assert not lab.microscope.state().optics.beam_blanked
    lab.client.release_lease("anna")
