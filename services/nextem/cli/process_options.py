"""Options that several processes have, and what every process does with them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from nextem.cli.console import set_up_logging, stop_on_signals, tell_ready
from nextem.cli.observing import OPTIONS, PORT, observed, service_of
from nextem.wire.health import Health
from nextem.wire.listening import CannotListen

_LOG = click.option("--log", show_default="HOME/log", help="The log: a folder, or kafka://HOST:PORT.")

_KAFKA_SECURITY = click.option(
    "--kafka-security",
    envvar="NEXTEM_KAFKA_SECURITY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default="in the clear",
    help="How to speak to a Kafka (TOML): TLS, name and password, certificate.",
)


F = TypeVar("F", bound=Callable[..., Any])


def log_option(function: F, option: Callable[..., Any] = _LOG, name: str = "log") -> F:
    """``--log`` and ``--kafka-security``; the function is given the address, which says both."""

    @wraps(function)
    def called(*args: Any, kafka_security: Path | None, **given: Any) -> Any:
        given[name] = _with_security(given[name], kafka_security)
        return function(*args, **given)

    made: F = option(_KAFKA_SECURITY(called))
    return made


log_choice_option = partial(
    log_option,
    option=click.option(
        "--log", "log_choice", default="local", show_default=True, help="local, kafka, or kafka://HOST:PORT."
    ),
    name="log_choice",
)


def _with_security(address: str | None, file: Path | None) -> str | None:
    from nextem.wire.kafka_security import with_security
    from nextem.wire.log import UnknownLog, check_address

    if address is None or "://" not in address:
        return address
    try:
        check_address(address)
    except UnknownLog as error:
        raise click.BadParameter(str(error), param_hint="--log") from error
    if file is None or "?" in address or not address.startswith("kafka"):
        return address
    return with_security(address, file)


secured = click.option(
    "--tls",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="HOME/keys, where it is",
    help="Folder of `nextem keys`: certificates, and who may do what.",
)

_OPTIONS = (
    *OPTIONS,
    click.option("--with-parent", is_flag=True, hidden=True),
    click.option("--ready-file", type=click.Path(path_type=Path), hidden=True),
    click.option(
        "--health-host",
        default="127.0.0.1",
        show_default=True,
        help="Where probes may ask; 0.0.0.0: anywhere.",
    ),
    click.option(
        "--health-port",
        type=PORT,
        show_default="none",
        help="Answer /startupz, /readyz and /livez by HTTP.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log more."),
    click.option(
        "--home",
        envvar="NEXTEM_HOME",
        type=click.Path(path_type=Path),
        show_default="$NEXTEM_HOME or ./nextem-home",
        help="Folder of everything NexTEM keeps.",
    ),
)


@dataclass(frozen=True, slots=True)
class Running:
    """One process: where it keeps what it makes, when it is to end, and what it says of itself."""

    home: Path | None
    stop: threading.Event
    health: Health
    ready_file: Path | None

    def tell_ready(self, facts: Mapping[str, object]) -> None:
        """To the log, and to whoever started us."""
        tell_ready(self.ready_file, facts)


@contextmanager
def _running(
    *,
    home: Path | None,
    verbose: bool,
    health_host: str,
    health_port: int | None,
    ready_file: Path | None,
    with_parent: bool,
    log_format: str,
    metrics_host: str,
    metrics_port: int | None,
) -> Iterator[Running]:
    """Logs, answers probes, and has SIGTERM, SIGINT and the end of a parent end the process."""
    service = service_of(click.get_current_context().info_name)
    set_up_logging(verbose, service if log_format == "json" else "")
    process = Running(home, stop_on_signals(with_parent), Health(), ready_file)
    with ExitStack() as stack:
        stack.callback(process.health.close)
        stack.enter_context(observed(service, process.health, metrics_host, metrics_port))
        if health_port is not None:
            from nextem.wire.health_server import served

            try:
                stack.enter_context(served(process.health, health_host, health_port))
            except OSError as error:
                where = f"{health_host}:{health_port}"
                raise click.ClickException(f"--health-port: {where}: {error.strerror}") from error
        yield process


def common(function: Callable[..., None]) -> Callable[..., None]:
    """The options that every process has; the function is given ``process``, a :class:`Running`.

    Signals are handled before it is called and so before it imports anything: what runs as the first process
    of a container and handles none does not end by them.
    """

    @wraps(function)
    def called(**given: Any) -> None:
        own = {name: given.pop(name) for name in _NAMES}
        with _running(**own) as process:
            try:
                function(process=process, **given)
            except CannotListen as error:
                raise click.ClickException(str(error)) from error

    command: Callable[..., None] = called
    for option in _OPTIONS:
        command = option(command)
    return command


_NAMES = tuple(inspect.signature(_running).parameters)
