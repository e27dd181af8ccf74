"""A real Apache Kafka on this machine: one KRaft node (broker and controller in one process), from Maven.

The jars are fetched once into ``$XDG_CACHE_HOME/nextem/kafka-VERSION/lib`` (or ``~/.cache``). A broker
belongs to a data folder, which holds its configuration, its log files and who it is. It runs in a session
of its own and outlives the command that started it. The broker process holds a lock on ``DATA/alive.lock``
from birth to death, so that "does it run" is answered by the kernel and never by a process number that may
have been reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nextem.cli.kafka_jars import BrokerUnavailable, ensure_jars, locked, require_java
from nextem.wire.kafka import answers

ATTEMPTS = 3
"""How often new free ports are tried: another process may take a free port before the broker binds it."""

_LOG4J = """status=error
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=${sys:nextem.data}/broker.log
appender.file.filePattern=${sys:nextem.data}/broker.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{ISO8601} %p %m (%c{1})%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=16MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
"""


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """Which broker a data folder holds. ``address`` and ``pid`` are those of its last start."""

    running: bool
    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Identity:
    pid: int
    port: int
    controller_port: int

    @property
    def address(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A further listener on loopback. ``advertised``: the port that clients come back to; 0: the same."""

    port: int
    advertised: int = 0
    protocol: str = "PLAINTEXT"


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What a broker has beside the loopback listener in the clear.

    ``more``: further settings of Kafka's own. ``users``: names and passwords for SCRAM-SHA-512, made when the
    folder is new.
    """

    listeners: Sequence[Listener] = ()
    more: Mapping[str, object] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)


_PLAIN = BrokerSettings()


def start(
    data_dir: Path,
    port: int | None = None,
    *,
    heap_mib: int = 512,
    timeout_s: float = 60.0,
    settings: BrokerSettings = _PLAIN,
) -> str:
    """Starts the broker of ``data_dir`` and waits until it answers; returns ``kafka://127.0.0.1:port``.

    ``port``: None takes the port of the last start in this folder, or a free one. A broker that already
    runs is left alone and its address returned. Raises :class:`BrokerUnavailable`.
    """
    java, lib = require_java(), ensure_jars()
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with locked(data_dir / "start.lock"):
        known = _identity(data_dir)
        if known is not None and _alive(data_dir):
            _wait_ready(data_dir, known, timeout_s)
            return known.address
        wanted = port if port is not None else known.port if known is not None else None
        return _launch(data_dir, java, lib, wanted, heap_mib, timeout_s, settings).address


def stop(data_dir: Path, timeout_s: float = 20.0) -> bool:
    """Stops the broker of ``data_dir``: SIGTERM, and SIGKILL after ``timeout_s``. False where none ran."""
    data_dir = data_dir.resolve()
    known = _identity(data_dir)
    if known is None or not _alive(data_dir):
        return False
    _signal(known.pid, signal.SIGTERM)
    if not _wait_dead(data_dir, known.pid, timeout_s):
        _signal(known.pid, signal.SIGKILL)
        _wait_dead(data_dir, known.pid, 10.0)
    return True


def status(data_dir: Path) -> BrokerStatus | None:
    """What is known of the broker of ``data_dir``; None where none was ever started."""
    data_dir = data_dir.resolve()
    known = _identity(data_dir)
    return None if known is None else BrokerStatus(_alive(data_dir), known.address, known.pid)


@contextlib.contextmanager
def running(data_dir: Path, port: int | None = None) -> Iterator[str]:
    """The address of a broker that runs for the length of the ``with`` block."""
    address = start(data_dir, port)
    try:
        yield address
    finally:
        stop(data_dir)


def _launch(
    data_dir: Path,
    java: str,
    lib: Path,
    port: int | None,
    heap_mib: int,
    timeout_s: float,
    settings: BrokerSettings,
) -> _Identity:
    for attempt in range(ATTEMPTS):
        chosen, controller = _free_ports(port)
        _configure(data_dir, java, lib, chosen, controller, settings)
        heap = [f"-Xms{heap_mib // 2}m", f"-Xmx{heap_mib}m", "-XX:+UseSerialGC"]
        pid = _spawn(
            data_dir, [java, *heap, *_java_options(data_dir, lib), "kafka.Kafka", _properties(data_dir)]
        )
        identity = _Identity(pid, chosen, controller)
        _write(data_dir / "broker.json", json.dumps(asdict(identity)))
        try:
            _wait_ready(data_dir, identity, timeout_s)
        except BrokerUnavailable:
            stop(data_dir)
            if port is not None or attempt == ATTEMPTS - 1:
                raise
        else:
            return identity
    raise AssertionError("the loop returns or raises")


def _properties(data_dir: Path) -> str:
    return str(data_dir / "server.properties")


def _java_options(data_dir: Path, lib: Path) -> list[str]:
    return [
        f"-Dlog4j2.configurationFile={data_dir / 'log4j2.properties'}",
        f"-Dnextem.data={data_dir}",
        "-cp",
        f"{lib}/*",
    ]


def _configure(
    data_dir: Path, java: str, lib: Path, port: int, controller: int, settings: BrokerSettings
) -> None:
    named = {f"EXTRA_{number}": one for number, one in enumerate(settings.listeners)}
    listened = "".join(f",{name}://127.0.0.1:{one.port}" for name, one in named.items())
    advertised = "".join(f",{name}://127.0.0.1:{one.advertised or one.port}" for name, one in named.items())
    protocols = "".join(f",{name}:{one.protocol}" for name, one in named.items())
    lines: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listened}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}{advertised}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 5,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
        "message.max.bytes": 2 << 20,
        "log.retention.bytes": 8 << 30,
        "log.dirs": data_dir / "log",
        **settings.more,
    }
    _write(data_dir / "server.properties", "".join(f"{key}={value}\n" for key, value in lines.items()))
    _write(data_dir / "log4j2.properties", _LOG4J)
    if (data_dir / "log" / "meta.properties").exists():
        return
    # Kafka's ids are 128 bits in URL-safe base 64 and must not start with a dash, which would look like an
    # option.
    data = os.urandom(16)
    identity = urlsafe_b64encode(bytes([data[0] & 0x7F]) + data[1:]).decode().rstrip("=")
    command = [java, "-Xmx256m", *_java_options(data_dir, lib), "kafka.tools.StorageTool", "format"]
    command += ["-t", identity, "-c", _properties(data_dir), "--ignore-formatted"]
    for name, password in settings.users.items():
        command += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BrokerUnavailable(f"Kafka could not format {data_dir}: {' '.join(done.stderr.split())[-300:]}")


def _spawn(data_dir: Path, command: list[str]) -> int:
    """Starts the broker detached; it inherits the open lock, which the kernel frees when it dies."""
    lock = os.open(data_dir / "alive.lock", os.O_RDWR | os.O_CREAT, 0o644)
    out = os.open(data_dir / "broker.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock, True)
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        redirect = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
        return os.posix_spawn(
            command[0], command, os.environ, file_actions=[*actions, *redirect], setsid=True
        )
    finally:
        os.close(out)
        os.close(lock)


def _wait_ready(data_dir: Path, identity: _Identity, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not answers(f"127.0.0.1:{identity.port}", timeout_s=1.0):
        if not _alive(data_dir):
            raise BrokerUnavailable(f"Kafka ended while starting; see {data_dir / 'broker.log'}")
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"Kafka was not ready after {timeout_s:g} s; see {data_dir / 'broker.log'}"
            )
        time.sleep(0.1)


def _wait_dead(data_dir: Path, pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not _alive(data_dir):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            return True
        time.sleep(0.05)
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _alive(data_dir: Path) -> bool:
    try:
        handle = os.open(data_dir / "alive.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _identity(data_dir: Path) -> _Identity | None:
    try:
        return _Identity(**json.loads((data_dir / "broker.json").read_text()))
    except FileNotFoundError:
        return None


def _free_ports(port: int | None) -> tuple[int, int]:
    """``port`` or a free one, and another free one for the controller."""
    with socket.socket() as first, socket.socket() as second:
        first.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as Kafka does: the last one's port rests
        try:
            first.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise BrokerUnavailable(f"port {port} of 127.0.0.1 cannot be had: {error.strerror}") from error
        second.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


def _write(path: Path, text: str) -> None:
    """Replaces a file whole: whoever reads it sees the old or the new."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
