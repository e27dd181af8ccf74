"""The network between the edge and the steering service is cut while the instrument is led."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_kit import Lab, Microscope, until
from partition_kit import partition
from wire_kit import BOTH, FROM_EDGE, TO_EDGE, Wire

from nextem.v1 import control_pb2 as pb

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), microscope, lost_after_s="2")
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


def test_a_short_silence_changes_nothing(lab: Lab) -> None:
    """What the network held up for less than the bound arrives late, and steering goes on."""
    lab.microscope.reset()
    lease, wire = lab.lease(), lab.wire
    assert isinstance(wire, Wire)
    with lab.scanning(lease):
        wire.hold(*BOTH)
        sent = lab.microscope.state().frames_sent
        until(lambda: lab.microscope.state().frames_sent > sent + 50, "frames come all the same")
        wire.release()
        assert lab.client.stop("anna", "enough").state == pb.COMMAND_STATE_DONE
    assert not lab.microscope.state().optics.beam_blanked
    lab.client.release_lease("anna")
