"""Settings of a process: its flags, its environment, one TOML file, its defaults, in that order of strength.

The model is the click command itself: a key of the file is the long name of a flag with underscores
(``ring_mib`` for ``--ring-mib``), and is read as if typed behind the flag.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nextem.cli.home import Home

COMMON = "common"
"""The table whose settings hold for every process that has them."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "edge": ("edge",),
    "analyse": ("analyse",),
    "steer": ("steer",),
    "simulate": ("simulate",),
    "operator": ("operator", "run"),
}
"""The tables of a file, and which command each is for."""

_META = "nextem.cli.settings"
_SERVICE_LINK = re.compile(
    r"\w+_SERVICE_(HOST|PORT(_\w+)?)=.*|\w+_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|=(tcp|udp|sctp)://.*)"
)
"""NAME=VALUE that Kubernetes puts into the environment for each Service of the namespace."""


class SettingsError(click.ClickException):
    """A settings file or the environment says what no process understands."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One TOML file: its tables by name, each with values by key, nothing of it checked yet."""

    path: Path
    tables: Mapping[str, Mapping[str, object]]

    @classmethod
    def read(cls, path: Path) -> SettingsFile:
        """Raises :class:`SettingsError` for a file that is no TOML of tables with known names."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path}: {error}") from error
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise SettingsError(f"{path}: {name!r} stands before the first table; write it below one")
            if name not in (*TABLES, COMMON):
                known = nearest(name, (*TABLES, COMMON))
                raise SettingsError(f"{path}: there is no table [{name}]; {known}")
        return cls(path, tables)

    def check(self, commands: Mapping[str, click.Command]) -> None:
        """Raises :class:`SettingsError` for a key that no command of ``commands`` (by table) has.

        Tables of commands that are not among them are not looked at.
        """
        known = {name: set(options(command)) for name, command in commands.items()}
        known[COMMON] = set().union(*known.values())
        for name, table in self.tables.items():
            for key in table:
                if name in known and key not in known[name]:
                    told = nearest(key, known[name])
                    raise SettingsError(f"{self.path}: [{name}] has no setting {key!r}; {told}")

    def of(self, table: str, command: click.Command) -> dict[str, tuple[object, str]]:
        """What the file sets for one process: by key the value, as click takes it, and the table.

        Raises :class:`SettingsError` for a value that no flag could have.
        """
        found: dict[str, tuple[object, str]] = {}
        known = options(command)
        for name in (COMMON, table):
            for key, value in self.tables.get(name, {}).items():
                if key in known:
                    where = f"{self.path}: [{name}] {key}"
                    found[key] = _as_typed(known[key], value, where), name
        return found

    def check_values(self, table: str, command: click.Command) -> None:
        """Raises :class:`SettingsError` for a value that ``command`` would refuse; no path is looked up."""
        known = options(command)
        context = click.Context(command, info_name=table)
        for key, (value, name) in self.of(table, command).items():
            option = known[key]
            if isinstance(option.type, click.Path):
                continue
            try:
                option.type_cast_value(context, value)
            except click.BadParameter as error:
                raise SettingsError(f"{self.path}: [{name}] {key}: {error.message}") from error


def options(command: click.Command) -> dict[str, click.Option]:
    """The settings of a command, by key."""
    return {
        param.name: param
        for param in command.params
        if isinstance(param, click.Option) and param.name is not None and not param.hidden
    }


def _as_typed(option: click.Option, value: object, where: str) -> object:
    """``value`` as a person would type it behind the flag; lists only where the flag may be repeated."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise SettingsError(f"{where}: {value!r} is neither true nor false")
        return value
    if option.multiple:
        if not isinstance(value, list):
            raise SettingsError(f"{where}: {value!r} is no list")
        return [_scalar(each, where) for each in value]
    return _scalar(value, where)


def _scalar(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SettingsError(f"{where}: {value!r} is neither a text nor a number")
    return str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: which known one is near, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"the nearest is {near[0]!r}" if near else f"known are {', '.join(names)}"


def commands(root: click.Context) -> Iterator[tuple[str, click.Command | None]]:
    """The processes' commands by table; None for one that this installation has not."""
    for table, path in TABLES.items():
        command: click.Command | None = root.command
        for name in path:
            try:
                command = command.get_command(root, name) if isinstance(command, click.Group) else None
            except click.ClickException:
                command = None  # a package that it needs is not installed here
        yield table, command


class Process(click.Command):
    """A command that is a process: takes settings from the file and ``NEXTEM_<TABLE>_<KEY>`` too.

    ``table``: its table of the file, by default its name.
    """

    def __init__(self, *args: Any, table: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.table = table or str(self.name)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        extra["auto_envvar_prefix"] = self.prefix
        return super().make_context(info_name, args, parent, **extra)

    @property
    def prefix(self) -> str:
        """With which the names of its variables in the environment begin, before an underscore."""
        return f"NEXTEM_{self.table.upper()}"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        asked = self.get_help_option(ctx)
        if not ctx.resilient_parsing and (asked is None or asked.name not in given):
            self._take_up(ctx, given)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if error.param is None or not (told := _told(ctx, error.param)):
                raise
            text = f"{error.message} ({told})"
            raise click.BadParameter(text, ctx, error.param, error.param_hint) from error

    def _take_up(self, ctx: click.Context, given: Mapping[str, Any]) -> None:
        """Makes what the settings file says the defaults of ``ctx``. Raises :class:`SettingsError`."""
        check_environment(self.prefix, self.params)
        file = find_file(ctx, self._home(ctx, given))
        if file is None:
            return
        loaded = {table: command for table, command in commands(ctx.find_root()) if command is not None}
        file.check(loaded | {self.table: self})
        found = file.of(self.table, self)
        ctx.default_map = {key: value for key, (value, _) in found.items()}
        ctx.meta[_META] = {key: f"{file.path} [{name}]" for key, (_, name) in found.items()}

    def _home(self, ctx: click.Context, given: Mapping[str, Any]) -> Path | None:
        option = options(self).get("home")
        value = None if option is None else option.consume_value(ctx, given)[0]
        return Path(value) if isinstance(value, str) else None


def find_file(ctx: click.Context, home: Path | None) -> SettingsFile | None:
    """The file that ``--config`` or NEXTEM_CONFIG names, else that of the home folder, where it is.

    Raises :class:`SettingsError`.
    """
    named = ctx.find_root().params.get("config")
    path = Path(named) if named else Home.at(home).settings
    return SettingsFile.read(path) if named or path.exists() else None


def check_environment(prefix: str, params: Sequence[click.Parameter]) -> None:
    """Raises :class:`SettingsError` for a variable that begins with ``prefix`` and sets nothing.

    What Kubernetes puts there for a Service (``NEXTEM_EDGE_SERVICE_HOST`` and such) is nobody's mistake.
    """
    known = {f"{prefix}_{param.name.upper()}" for param in params if param.name}
    for name, value in os.environ.items():
        if not name.startswith(f"{prefix}_") or name in known:
            continue
        if _SERVICE_LINK.fullmatch(f"{name}={value}"):
            continue
        raise SettingsError(f"the environment has {name}, which is no setting; {nearest(name, known)}")


def _told(ctx: click.Context, param: click.Parameter) -> str:
    """Where a value comes from that nobody typed; empty for a flag and a default."""
    where = origin(ctx, param)
    return where if where not in ("flag", "default") else ""


def origin(ctx: click.Context, param: click.Parameter) -> str:
    """Where the value of ``param`` comes from, in words."""
    source = ctx.get_parameter_source(str(param.name))
    if source is ParameterSource.COMMANDLINE:
        return "flag"
    if source is ParameterSource.ENVIRONMENT:
        named = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())
        own = f"{ctx.auto_envvar_prefix}_{str(param.name).upper()}"
        return f"environment {next((name for name in named if os.environ.get(name)), own)}"
    if source is ParameterSource.DEFAULT_MAP:
        return str(ctx.meta[_META][param.name])
    return "default"
