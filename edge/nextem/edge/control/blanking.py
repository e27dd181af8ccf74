"""Turns the beam off: in one call where the instrument can, else by setting the optics as they are read."""

from __future__ import annotations

import logging
import threading
from functools import partial

from nextem.edge.control.driver import Blanks, CapabilityMissing, Driver, insist
from nextem.v1.control_pb2 import InstrumentState

logger = logging.getLogger(__name__)

BLANK = "blank_beam"
"""What the outcome of a rule's blank is called."""


def blank(driver: Driver, driver_lock: threading.Lock, epoch: int) -> InstrumentState:
    """Returns the state after it. ``epoch`` is higher than that of any command that passed its checks.

    Only where it takes two calls does it wait for ``driver_lock``: a change between them would be undone.
    Raises :class:`~nextem.edge.control.driver.DriverError` when three tries in a row have failed.
    """
    return insist(partial(_once, driver, driver_lock, epoch), "the beam could not be blanked")


def _once(driver: Driver, driver_lock: threading.Lock, epoch: int) -> InstrumentState:
    if isinstance(driver, Blanks):
        try:
            return driver.blank_beam(epoch)
        except CapabilityMissing as missing:
            logger.debug("the optics are set instead: %s", missing)
    with driver_lock:
        state = driver.get_state()
        state.optics.beam_blanked = True
        return driver.set_optics(max(epoch, state.command_epoch + 1), state.optics)
