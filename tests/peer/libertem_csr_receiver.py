"""Run by the peer's python: its receiver of Timepix3 reads scans from our simulated CSR stream.

Arguments: port, number of scans, a file for the arrays. For each scan the file gets ``counts<k>`` (of each
frame), ``indices<k>`` and ``values<k>``; printed are scan and frame shape of each as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from libertem_asi_tpx3 import ASITpx3Connection, CamClient


def main() -> None:
    port, scans = int(sys.argv[1]), int(sys.argv[2])
    arrays, shapes = {}, []
    with tempfile.TemporaryDirectory(prefix="nextem-csr-") as folder:
        connection = ASITpx3Connection(
            uri=f"127.0.0.1:{port}",
            chunks_per_stack=4,
            handle_path=str(Path(folder) / "shm"),
            num_slots=50,
            bytes_per_chunk=1 << 18,
        )
        connection.start_passive()
        client = None
        for scan in range(scans):
            header = connection.wait_for_arm(timeout=30.0)
            assert header is not None, f"scan {scan} did not come"
            client = client or CamClient(connection.get_socket_path())
            parts: list[tuple[np.ndarray, ...]] = []
            while (stack := connection.get_next_stack(max_size=64)) is not None:
                for layout, indptr, indices, values in client.get_chunks(handle=stack):
                    counts = np.diff(np.frombuffer(indptr, layout.get_indptr_dtype()).astype(np.int64))
                    index = np.frombuffer(indices, layout.get_indices_dtype()).copy()
                    parts.append((counts, index, np.frombuffer(values, layout.get_value_dtype()).copy()))
                client.done(stack)
                if sum(len(part[0]) for part in parts) >= np.prod(header.get_nav_shape()):
                    break
            for name, column in zip(("counts", "indices", "values"), zip(*parts, strict=True), strict=True):
                arrays[f"{name}{scan}"] = np.concatenate(column)
            shapes.append([header.get_nav_shape(), header.get_sig_shape()])
        connection.close()
    np.savez(sys.argv[3], **arrays)
    print(json.dumps(shapes))


if __name__ == "__main__":
    main()
