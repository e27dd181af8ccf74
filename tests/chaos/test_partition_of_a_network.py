"""As test_partition.py, where the kernel loses the packets between two network namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from chaos_kit import Lab, Microscope, nextem
from net_kit import Network, NoNetwork
from partition_kit import partition
from wire_kit import BOTH, FROM_EDGE, TO_EDGE

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def far_lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    try:
        network = Network()
    except NoNetwork as error:
        pytest.skip(str(error))
    with closing(network):
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
        pytest.param("moving", (FROM_EDGE,), id="move-from-edge"),
        pytest.param("scanning", (TO_EDGE,), id="scan-to-edge"),
    ],
)
def test_a_partition_of_a_real_network_does_so_too(far_lab: Lab, doing: str, ways: tuple[str, ...]) -> None:
    """With keys, over two addresses; the kernel loses every packet, the first ones of new connections too."""
    partition(far_lab, doing, ways)
