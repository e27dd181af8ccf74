"""Merlin's acquisition header, written: the text before the first frame."""

from __future__ import annotations

from nextem.simulator.merlin import DACS, THRESHOLDS

ACQUISITION_HEADER_BYTES = 2048

_ACQUISITION = f"""HDR,\t
Time and Date Stamp (day, mnth, yr, hr, min, s):\t{{taken}}
Chip ID:\tSIM_0001, - , - , -\x20
Chip Type (Medipix 3.0, Medipix 3.1, Medipix 3RX):\tMedipix 3RX
Assembly Size (NX1, 2X2):\t{{layout}}
Chip Mode  (SPM, CSM, CM, CSCM):\tSPM
Counter Depth (number):\t{{depth}}
Gain:\tSLGM
Active Counters:\tCounter 0
Thresholds (keV):\t{THRESHOLDS}
DACs:\t{DACS}; ; ;\x20
bpc File:\tNone,,,
DAC File:\tNone,,,
Gap Fill Mode:\tNone
Flat Field File:\tNone
Dead Time File:\tNone
Acquisition Type (Normal, Th_scan, Config):\tNormal
Frames in Acquisition (Number):\t{{frames}}
Frames per Trigger (Number):\t{{frames}}
Trigger Start (Positive, Negative, Internal):\t{{trigger}}
Trigger Stop (Positive, Negative, Internal):\tInternal
Sensor Bias (V):\t120 V
Sensor Polarity (Positive, Negative):\tPositive
Temperature (C):\tBoard Temp 0.000000 Deg C
Humidity (%):\tBoard Humidity 0.000000\x20
Medipix Clock (MHz):\t120MHz
Readout System:\tNexTEM simulator
Software Version:\t1.5.0.197
{{scan}}End\t"""


def acquisition_header(
    *,
    frames: int,
    depth_bits: int,
    taken: str,
    layout: str = "1x1",
    scan_yx: tuple[int, int] | None = None,
    trigger: str = "Internal",
) -> bytes:
    """The payload that announces ``frames`` frames: ``HDR,`` and ``Key:\\tValue`` lines, padded with spaces.

    ``scan_yx`` adds the ``ScanX`` and ``ScanY`` of newer software. ``taken``, when the acquisition began, and
    ``trigger`` are for people.
    """
    scan = "" if scan_yx is None else f"ScanX:\t{scan_yx[1]}\nScanY:\t{scan_yx[0]}\n"
    text = _ACQUISITION.format(
        frames=frames, depth=depth_bits, taken=taken, layout=f"{layout:>6}", trigger=trigger, scan=scan
    )
    return text.replace("\n", "\r\n").encode("latin-1").ljust(ACQUISITION_HEADER_BYTES)
