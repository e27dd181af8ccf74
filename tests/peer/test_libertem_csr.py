"""LiberTEM's own receiver of Timepix3 data, which we did not write, reads our simulator's CSR stream."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.csr import CsrFormat

# The first test makes the peer's environment.
pytestmark = pytest.mark.timeout(900)

WAIT_S = 60.0


@pytest.mark.parametrize("values", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("indices", ["uint16", "uint32"])
def test_it_receives_our_simulator(peer_bin: Path, tmp_path: Path, values: str, indices: str) -> None:
    form = CsrFormat(
        (6, 7), (24, 20), values=values, indices=indices
    )  # its receiver takes metadata for a header
    rng = np.random.default_rng(1)
    scans = [rng.poisson(0.05, (42, 24, 20)).astype(values) for _ in range(2)]
    script = Path(__file__).with_name("libertem_csr_receiver.py")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        file = tmp_path / "arrays.npz"
        command = [peer_bin / "python", script, server.getsockname()[1], len(scans), file]
        with subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as peer:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"".join(form.messages(*scans)))
                told, errors = peer.communicate(timeout=WAIT_S)
    assert peer.returncode == 0, errors[-2000:]
    assert json.loads(told.splitlines()[-1]) == [[[6, 7], [24, 20]]] * 2
    found = np.load(file)
    for number, frames in enumerate(scans):
        flat = frames.reshape(42, -1)
        row, pixel = np.nonzero(flat)
        assert np.array_equal(found[f"counts{number}"], np.bincount(row, minlength=42))
        assert np.array_equal(found[f"indices{number}"], pixel)
        assert np.array_equal(found[f"values{number}"], flat[row, pixel])
