"""In Nion's environment: the simulated Nion microscope, registered as Swift does, behind our adapter.

Prints the port; then, for each line on its input, where the microscope itself says that it is, as JSON.
"""

from __future__ import annotations

import json
import sys

from nion.usim_device import InstrumentDevice
from nion.utils import Registry

from nextem.edge.control.drivers.address import open_column
from nextem.edge.control.drivers.column import ColumnDriver
from nextem.edge.control.drivers.serve import serve_driver

microscope = InstrumentDevice.Instrument(
    "usim_stem_controller",
    InstrumentDevice.ValueManager(),
    InstrumentDevice.AxisManager(),
    InstrumentDevice.ScanDataGenerator(sample_index=0),
)
Registry.register_component(microscope, {"instrument_controller", "stem_controller"})
server, port = serve_driver(ColumnDriver(open_column("nion://")))
print(port, flush=True)
for _ in sys.stdin:
    at = microscope.stage_position_m
    coma = microscope.GetVal2D("C21")
    told = {
        "stage_m": [at.y, at.x],
        "C10": microscope.GetVal("C10"),
        "C21": [coma.x, coma.y],
        "blanked": microscope.GetVal("C_Blank"),
    }
    print(json.dumps(told), flush=True)
server.stop(None).wait()
