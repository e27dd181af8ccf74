"""The edge as a program: the data path and, where it is to be steered, the control agent."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from nextem.edge.control.driver import Driver, DriverError
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.edge.retention.fetch import FetchRaw, RawFetcher, without_ring
from nextem.edge.retention.raw_ring import RawRing
from nextem.edge.rules.plan import InvalidRule, read_rules
from nextem.edge.telemetry import observe_pipeline
from nextem.v1 import control_pb2, plan_pb2
from nextem.wire.clock import Clock, MonotonicClock
from nextem.wire.health import STORE_S, Health, log_reached, open_log_once_there, store_taken
from nextem.wire.key_folder import KeyFolder, edge_files
from nextem.wire.log import Log, LogError
from nextem.wire.object_store import open_objects
from nextem.wire.threads import short_turns, spared_collector

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_LAST_S = 5.0


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """Where everything is. ``log`` is an address for :func:`nextem.wire.log.open_log`.

    ``detector`` is an address of :mod:`nextem.edge.detectors.registry`, other addresses are "host:port".
    Without ``instrument_address`` the edge only listens to the detector; without ``steering_address`` it acts
    by the rules of its plans and by its console; without ``limits_path`` the built-in limits of the simulator
    hold.
    """

    instrument: str
    log: str
    detector: str
    spool_dir: Path
    journal_path: Path
    limits_path: Path | None = None
    limits_key_path: Path | None = None  # public key (PEM) by which the limits file must be signed
    instrument_address: str | None = None
    steering_address: str | None = None
    passive_plan: plan_pb2.Plan | None = None
    ring_bytes: int = 256 << 20
    idle_timeout_s: float = 5.0
    calibrations: Path | None = None  # folder
    workers: int = 0  # threads that reduce; 0: by the number of processors
    raw_ring_bytes: int = 0  # of disk for raw frames; 0: none are kept
    raw_ring_dir: Path | None = None  # folder of the ring
    raw_ring_age_s: float | None = None  # older raw frames are gone; None: only the bytes are a bound
    mode: control_pb2.Mode | None = None  # None: as the journal has it, automatic in a new one
    lost_after_s: float = 6.0  # a steering service that is silent for so long is lost
    store: str | None = None  # where raw frames that are asked for are brought: a folder or s3://…
    rules_off: tuple[str, ...] = ()  # names of rules of plans that do not act
    keys: KeyFolder | None = None  # certificates, and the key set by which tokens are checked


def run_edge(
    options: EdgeOptions,
    stop: Event,
    ready: Callable[[], None] | None = None,
    health: Health | None = None,
) -> None:
    """Runs until ``stop`` is set, then closes everything in order; calls ``ready`` once it listens.

    Brokers that cannot be reached at the start are waited for. At the end the agent goes first, so that
    nothing can be commanded while the data path drains. Raises ``DetectorFailed``, after the same closing,
    when the detector's thread has died: whoever supervises the process starts it anew. Raises
    :class:`nextem.wire.tls.TlsError`, :class:`nextem.wire.key_folder.BadName`,
    :class:`~nextem.edge.rules.plan.InvalidRule` and :class:`nextem.wire.tokens.KeySetUnreadable` before
    anything can be commanded.
    """
    if options.passive_plan is not None and not options.instrument_address:
        for rule in read_rules(options.passive_plan):
            raise InvalidRule(rule.name, "this edge commands no instrument, so no rule can act")
    health = health or Health()
    clock = MonotonicClock()
    with ExitStack() as stack:
        stack.enter_context(short_turns())
        to = open_log_once_there(options.log, stop, health)
        if to is None:
            return
        stack.callback(_close, to)
        pipeline = EdgePipeline(
            PipelineConfig(
                instrument=options.instrument,
                detector=options.detector,
                spool_dir=options.spool_dir,
                ring_bytes=options.ring_bytes,
                idle_timeout_s=options.idle_timeout_s,
                passive_plan=options.passive_plan,
                workers=options.workers,
                calibrations=options.calibrations,
                raw_ring_dir=options.raw_ring_dir if options.raw_ring_bytes else None,
                raw_ring_bytes=options.raw_ring_bytes,
                raw_ring_age_s=options.raw_ring_age_s,
                on_finished=lambda _: logger.info("stats %s", json.dumps(pipeline.stats())),
            ),
            to,
            clock,
        )
        stack.callback(pipeline.close)
        pipeline.start()
        observe_pipeline(pipeline)
        health.watch("log", log_reached(options.log))
        health.check("spool", pipeline.why_full)
        if options.instrument_address:
            _start_agent(stack, options, pipeline, clock, to, health)
        stack.enter_context(spared_collector())
        logger.info("the edge of %s runs, boot %s", options.instrument, clock.boot_id)
        if ready is not None:
            ready()
        for _ in health.rounds(stop, _LOOK_S):
            if pipeline.failure is not None:
                raise pipeline.failure


def _close(log: Log) -> None:
    """What a log that is away does not take lies in the spool and in the audit's file."""
    try:
        log.close(_LAST_S)
    except LogError as error:
        logger.warning("the log is away at the end: %s", error)


def _fetch_raw(stack: ExitStack, options: EdgeOptions, ring: RawRing | None, health: Health) -> FetchRaw:
    """Who brings raw frames to the store, where the edge keeps any and has a store; running."""
    if ring is None or options.store is None:
        return without_ring
    health.watch("store", store_taken(options.store, f"edge-{options.instrument}"), STORE_S)
    fetcher = RawFetcher(ring, open_objects(options.store))
    stack.callback(fetcher.close)
    fetcher.start()
    return fetcher.fetch


def _open_driver(stack: ExitStack, address: str, keys: KeyFolder | None, instrument: str) -> Driver:
    """A gRPC service need not be there yet. "tls://HOST:PORT" is dialled with ``keys`` also on loopback.

    Raises UnknownAddress, AdapterUnavailable and :class:`nextem.wire.tls.PlaintextRefused`.
    """
    from nextem.edge.control.drivers.address import TLS, is_adapter, open_column
    from nextem.edge.control.drivers.column import ColumnDriver
    from nextem.edge.control.grpc_driver import GrpcDriver
    from nextem.wire.tls import PlaintextRefused, is_loopback

    if is_adapter(address):
        return ColumnDriver(open_column(address))
    host_port = address.removeprefix(TLS)
    if keys is None and host_port != address:
        raise PlaintextRefused(f"{address} needs the folder of the certificates")
    if host_port == address and is_loopback(address):
        keys = None
    driver = GrpcDriver(host_port, keys=keys, instrument=instrument)
    stack.callback(driver.close)
    return driver


def _why_away(driver: Driver) -> str:
    """Empty where the instrument answers."""
    try:
        driver.get_state()
    except DriverError as error:
        return str(error)
    return ""


def _start_agent(
    stack: ExitStack, options: EdgeOptions, pipeline: EdgePipeline, clock: Clock, to: Log, health: Health
) -> None:
    from nextem.edge.control.agent import ControlAgent, ControlOptions
    from nextem.edge.control.console import ConsoleServer
    from nextem.edge.control.limits import default_limits
    from nextem.edge.control.link import Link, NoLink
    from nextem.edge.control.people import CONSOLE
    from nextem.edge.control.rule_actions import keeps_nothing
    from nextem.wire.console import FILE_NAME
    from nextem.wire.oidc import open_key_set
    from nextem.wire.record_signature import RecordSigner
    from nextem.wire.tls import Party

    assert options.instrument_address is not None
    keys = options.keys
    party = None if keys is None else Party(keys, edge_files(options.instrument))
    if party is not None:
        party.read()  # what cannot be used is told now, and not at every dial
    driver = _open_driver(stack, options.instrument_address, keys, options.instrument)
    agent = ControlAgent(
        ControlOptions(
            instrument=options.instrument,
            steering=options.steering_address or "",
            instrument_address=options.instrument_address,
            journal_path=options.journal_path,
            limits=options.limits_path or default_limits(),
            limits_key=options.limits_key_path,
            margin_s=3 * options.idle_timeout_s,
            mode=options.mode,
            lost_after_s=options.lost_after_s,
            signer=None if party is None else RecordSigner(party),
            key_set=None if keys is None else open_key_set(keys),
        ),
        driver,
        pipeline,
        clock,
        to,
        make_link=partial(Link, party=party) if options.steering_address else NoLink,
        fetch_raw=_fetch_raw(stack, options, pipeline.raw_ring, health),
        keep_raw=keeps_nothing if pipeline.raw_ring is None else pipeline.raw_ring.pin,
        watched_rules=pipeline.rules,
    )
    pipeline.on_firing(agent.rules.fire)
    stack.callback(agent.close)
    agent.start()
    for name in options.rules_off:
        agent.rules.switch(name, on=False, who=CONSOLE, reason="set at the start")
    health.watch("instrument", partial(_why_away, driver))
    if options.steering_address:
        health.check("steering", agent.why_alone)
    console = ConsoleServer(options.journal_path.with_name(FILE_NAME), agent.console.answer)
    stack.callback(console.close)
