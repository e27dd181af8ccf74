"""NexTEM as bluesky devices: ``pip install 'nextem[bluesky]'``.

The stage and the optics are movables, an acquisition is a detector and a flyer. See docs/bluesky.md.
"""

try:
    import bluesky  # noqa: F401
    import ophyd_async.core  # noqa: F401
except ImportError as error:
    raise ImportError(f"nextem.client.bluesky needs: pip install 'nextem[bluesky]' ({error})") from error

from nextem.client.bluesky.acquisition import Acquisition
from nextem.client.bluesky.errors import (
    CommandFailed,
    CommandRefused,
    LeaseLost,
    LeaseRefused,
    NoResult,
    ProductsMissing,
    Stopped,
)
from nextem.client.bluesky.microscope import Microscope
from nextem.client.bluesky.movables import Axis, Optics, Stage
from nextem.client.bluesky.product_handler import HANDLERS, SPEC, ProductHandler

__all__ = [
    "HANDLERS",
    "SPEC",
    "Acquisition",
    "Axis",
    "CommandFailed",
    "CommandRefused",
    "LeaseLost",
    "LeaseRefused",
    "Microscope",
    "NoResult",
    "Optics",
    "ProductHandler",
    "ProductsMissing",
    "Stage",
    "Stopped",
]
