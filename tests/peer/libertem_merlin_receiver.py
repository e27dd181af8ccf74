"""Run by the peer's python: LiberTEM-live receives acquisitions of 8 x 8 frames from a Merlin.

``data_port control_port count folder``. Prints "ready" when it waits for the next one, and writes the sums of
frames and the summed pattern of each to ``folder``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from libertem.udf.sum import SumUDF
from libertem.udf.sumsigudf import SumSigUDF
from libertem_live.api import LiveContext


def main() -> None:
    data_port, control_port, count = (int(argument) for argument in sys.argv[1:4])
    folder = Path(sys.argv[4])
    with LiveContext() as context:
        for number in range(count):
            with context.make_connection("merlin").open(
                api_host="127.0.0.1", api_port=control_port, data_host="127.0.0.1", data_port=data_port
            ) as connection:
                print("ready", flush=True)
                pending = connection.wait_for_acquisition(30.0)
                acquisition = context.make_acquisition(conn=connection, nav_shape=(8, 8), pending_aq=pending)
                pattern, sums = context.run_udf(dataset=acquisition, udf=[SumUDF(), SumSigUDF()])
            np.save(folder / f"pattern-{number}.npy", pattern["intensity"].data)
            np.save(folder / f"sums-{number}.npy", sums["intensity"].data)


if __name__ == "__main__":
    main()
