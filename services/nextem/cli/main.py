"""``nextem``: the command line. Sub-commands are imported only when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("nextem.cli.demo:demo", "Run a closed-loop experiment on a simulated microscope."),
    "replay": ("nextem.cli.replay:replay", "Send a file through edge, log and analysis."),
    "up": ("nextem.cli.up:up", "Start every process on this machine; Ctrl-C stops them."),
    "simulate": ("nextem.cli.processes:simulate", "One process: a microscope that obeys commands."),
    "edge": ("nextem.cli.edge:edge", "One process: receive, reduce, publish; guard the instrument."),
    "analyse": ("nextem.cli.processes:analyse", "One process: analyse frame blocks on Ray."),
    "steer": ("nextem.cli.processes:steer", "One process: the steering service and its policies."),
    "operator": ("nextem.cli.operator:operator", "Experiments as Kubernetes objects: carry them out."),
    "experiment": ("nextem.cli.experiments:experiment", "Have experiments carried out; watch and stop them."),
    "submit": ("nextem.cli.submit:submit", "Have a plan carried out; --wait shows its frames."),
    "watch": ("nextem.cli.steer:watch", "See what is asked of the instrument, and what waits for you."),
    "approve": ("nextem.cli.steer:approve", "Say yes to a command that waits."),
    "refuse": ("nextem.cli.steer:refuse", "Say no to a command that waits."),
    "undo": ("nextem.cli.steer:undo", "Bring stage or optics back to before a command."),
    "stop": ("nextem.cli.steer:stop", "Stop the instrument now."),
    "preempt": ("nextem.cli.at_edge:preempt", "At the edge: take the instrument into your own hands."),
    "release": ("nextem.cli.at_edge:release", "At the edge: give it back."),
    "safe": ("nextem.cli.at_edge:safe", "At the edge: stop, and blank the beam."),
    "rule": ("nextem.cli.at_edge:rule", "At the edge: switch a plan's edge rule off or on."),
    "mode": ("nextem.cli.steer:mode", "Show or change how much others may command."),
    "audit": ("nextem.cli.audit:audit", "Check the record of all commands; ask it why; replay it."),
    "products": ("nextem.cli.products:products", "List what was made; `products show ID` draws it."),
    "store": ("nextem.cli.store:store", "Make a bucket or folder fit to keep products, and try it."),
    "fetch-raw": ("nextem.cli.fetch_raw:fetch_raw", "Bring raw frames from the edge's disk into the store."),
    "keys": ("nextem.cli.keys:keys", "Certificates, signing keys and tokens: who may do what."),
    "config": ("nextem.cli.config:config", "Settings: where each comes from; check a file of them."),
    "kafka": ("nextem.cli.kafka:kafka", "Start, stop or ask a Kafka broker on this machine."),
}

_MISSING = "`nextem {name}` needs the package {package!r}, which is not installed: pip install 'nextem[all]'"


class LazyGroup(click.Group):
    """A group whose commands are imported on demand, so that ``nextem --help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module_name, _, attribute = _COMMANDS[name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("nextem"):
                raise
            raise click.ClickException(_MISSING.format(name=name, package=error.name)) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NEXTEM"},
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    show_default="$NEXTEM_CONFIG or HOME/nextem.toml",
    help="Settings of the processes (TOML).",
)
@click.version_option(package_name="nextem")
def main(config: str | None) -> None:
    """NexTEM runs an electron microscope as a closed loop.

    Frames are reduced beside the detector, travel as compressed blocks on a log, are analysed on Ray while
    the scan still runs, and commands go back to the instrument.

    \b
    Try it, with nothing to set up:   nextem demo
    See what it made:                 nextem products
    """


if __name__ == "__main__":
    main()
