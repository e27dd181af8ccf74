"""Run by the peer's python: LiberTEM-live receives one acquisition from our simulated DECTRIS detector.

Arguments: stream port, REST port, y and x of the scan, a file for the summed pattern. Prints the sum of every
frame as JSON.
"""

from __future__ import annotations

import json
import sys
import urllib.request

import numpy as np
from libertem.executor.inline import InlineJobExecutor
from libertem.udf.sum import SumUDF
from libertem.udf.sumsigudf import SumSigUDF
from libertem_live.api import LiveContext


def command(port: int, name: str) -> None:
    url = f"http://127.0.0.1:{port}/detector/api/1.8.0/command/{name}"
    urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT"), timeout=30).read()


def main() -> None:
    stream, rest, y, x = (int(argument) for argument in sys.argv[1:5])
    context = LiveContext(executor=InlineJobExecutor())
    where = {"data_host": "127.0.0.1", "data_port": stream, "api_host": "127.0.0.1", "api_port": rest}
    with context.make_connection("dectris").open(**where) as connection:
        command(rest, "arm")
        pending = connection.wait_for_acquisition(30.0)
        acquisition = context.make_acquisition(conn=connection, nav_shape=(y, x), pending_aq=pending)
        command(rest, "trigger")
        pattern, sums = context.run_udf(dataset=acquisition, udf=[SumUDF(), SumSigUDF()])
    np.save(sys.argv[5], pattern["intensity"].data)
    print(json.dumps(sums["intensity"].data.reshape(-1).tolist()))


if __name__ == "__main__":
    main()
