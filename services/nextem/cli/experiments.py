"""``nextem experiment submit | watch | stop``: on objects of a cluster, or on the steering service itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from google.protobuf import json_format

from nextem.cli.console import frames_bar
from nextem.cli.steer import Person, person, steering_of
from nextem.cli.submit import carry_out, is_well
from nextem.cli.words import outcome_line
from nextem.client import SteeringClient
from nextem.client.client import FINAL_STATES
from nextem.v1 import control_pb2, plan_pb2

if TYPE_CHECKING:
    from nextem.operator.experiments import Experiments

KIND, API_VERSION = "Experiment", "nextem.dev/v1alpha1"
LOOK_S = 0.5
_FINAL = ("Complete", "Failed", "Stopped")


@click.group()
def experiment() -> None:
    """Have experiments carried out, and see what becomes of them.

    In a cluster that has the kind Experiment they are objects, which its operator carries out. Without one
    the steering service is asked directly. --kubernetes and --no-kubernetes decide.
    """


def place(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say where; ``function`` gets ``objects``, None without a cluster, and ``who``."""

    @wraps(function)
    def call(kubernetes: bool | None, namespace: str, **more: Any) -> None:
        with _told():
            function(objects=_objects(kubernetes, namespace), **more)

    command: Callable[..., None] = person(call)
    for option in (
        click.option("--namespace", default="default", show_default=True, help="Of the objects."),
        click.option(
            "--kubernetes/--no-kubernetes",
            default=None,
            show_default="where the kubeconfig's cluster knows them",
            help="Objects of a cluster, or the steering service itself.",
        ),
    ):
        command = option(command)
    return command


def _objects(wanted: bool | None, namespace: str) -> Experiments | None:
    if wanted is False:
        return None
    try:
        from nextem.operator.experiments import Experiments, cluster_that_knows
    except ModuleNotFoundError as error:
        if wanted:
            raise click.ClickException(f"{error.name} is not here: pip install 'nextem[operator]'") from error
        return None
    if wanted is None:
        host = cluster_that_knows()
        if not host:
            return None
        click.echo(f"in the cluster at {host}, namespace {namespace}", err=True)
    return Experiments(namespace)


@contextmanager
def _told() -> Iterator[None]:
    try:
        from nextem.operator.objects import ClusterError
    except ModuleNotFoundError:
        yield
        return
    try:
        yield
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


@experiment.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--wait", is_flag=True, help="Until it has ended, with a bar of its frames.")
@place
def submit(file: Path, wait: bool, objects: Experiments | None, who: Person) -> None:
    """Have FILE carried out: an Experiment or a plan, as YAML or JSON.

    \b
    nextem experiment submit survey.yaml --wait
    nextem experiment submit plan.json --instrument tem-1 --no-kubernetes
    """
    body = read_experiment(file, who.instrument)
    if objects is None:
        plan = _plan_of(body, file)
        asked = replace(who, instrument=body["spec"].get("instrument", ""))
        with steering_of(asked) as client:
            last = carry_out(client, asked, plan, plan.title or file.stem, wait)
        if not is_well(last, wait):
            raise SystemExit(1)
        return
    if not body["spec"].get("instrument"):
        raise click.UsageError("a plan does not say on which instrument: --instrument NAME")
    name = objects.create(body)
    click.echo(f"experiment {name}")
    if wait:
        _watch_object(objects, name)


@experiment.command()
@click.argument("which", metavar="NAME|ID")
@place
def watch(which: str, objects: Experiments | None, who: Person) -> None:
    """Follow an experiment to its end, with a bar of its frames: NAME of an object, ID of an acquisition."""
    if objects is not None:
        _watch_object(objects, which)
        return
    with steering_of(who) as client:
        _watch_acquisition(client, who, which)


@experiment.command()
@click.argument("which", metavar="NAME|ID")
@click.option("--reason", default="", help="For the record.")
@place
def stop(which: str, reason: str, objects: Experiments | None, who: Person) -> None:
    """Stop an experiment: NAME of an object, ID of an acquisition. What was stored stays."""
    if objects is not None:
        objects.stop(which)
        click.echo(f"experiment {which} is being stopped")
        return
    with steering_of(who) as client:
        state = client.heartbeat(who.instrument, fresh=True).state
        if state.scanning and state.scan_id != which:
            told = f"not {which} but {state.scan_id} is running; `nextem stop` stops whatever runs"
            raise click.ClickException(told)
        outcome = client.stop(who.name, reason, instrument=who.instrument)
    click.echo(outcome_line(outcome))
    if outcome.state != control_pb2.COMMAND_STATE_DONE:
        raise SystemExit(1)


def read_experiment(file: Path, instrument: str) -> dict[str, Any]:
    """The object of a file that has one, or only a plan. ``instrument`` counts where it is given.

    Raises :class:`click.ClickException` for what is neither.
    """
    found = _read(file)
    if not isinstance(found, dict):
        raise click.ClickException(f"{file}: neither an Experiment nor a plan")
    if found.get("kind") == KIND:
        body = {**found, "spec": dict(found.get("spec") or {})}
    else:
        stem = "".join(letter if letter.isalnum() else "-" for letter in file.stem.lower()).strip("-")
        metadata = {"generateName": f"{stem or 'experiment'}-"}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"plan": found}}
    if instrument:
        body["spec"]["instrument"] = instrument
    return body


def _read(file: Path) -> Any:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as no_json:
        try:
            import yaml
        except ModuleNotFoundError:
            raise click.ClickException(f"{file}: {no_json} (YAML takes nextem[operator])") from no_json
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.ClickException(f"{file}: {error}") from error


def _plan_of(body: dict[str, Any], file: Path) -> plan_pb2.Plan:
    try:
        plan = json_format.ParseDict(body["spec"].get("plan") or {}, plan_pb2.Plan())
    except json_format.ParseError as error:
        raise click.ClickException(f"{file}: {error}") from error
    plan.schema_version = plan.schema_version or 1
    return plan


def _watch_object(objects: Experiments, name: str) -> None:
    """Exits with 1 where it does not end Complete."""
    shown = ""
    with frames_bar() as bar:
        frames = bar.add_task("frames", total=None)
        while True:
            body = objects.get(name)
            if body is None:
                raise click.ClickException(f"there is no experiment {name}, or no longer")
            status = body.get("status", {})
            phase, counted = status.get("phase", "Pending"), status.get("frames", {})
            bar.update(frames, completed=counted.get("stored", 0), total=counted.get("announced") or None)
            line = f"{phase}: {status.get('message', 'no operator has looked at it yet')}"
            if line != shown:
                bar.console.print(line, soft_wrap=True)
                shown = line
            if phase in _FINAL:
                break
            time.sleep(LOOK_S)
    for product in status.get("products", []):
        click.echo(f"  {product['id']}  {product.get('uri', '')}".rstrip())
    if phase != _FINAL[0]:
        raise SystemExit(1)


def _watch_acquisition(client: SteeringClient, who: Person, name: str) -> None:
    """Exits with 1 where it does not end well."""
    with client.watch(who.instrument) as events, frames_bar() as bar:
        frames = bar.add_task("frames", total=None)
        heartbeats = 0
        for event in events:
            if event.HasField("heartbeat"):
                heartbeats += 1
                if heartbeats == 1:  # from before we came
                    continue
                state = event.heartbeat.state
                if state.scan_id != name or not state.scanning:
                    raise click.ClickException(f"{name} does not run now; `nextem products` has what it made")
                bar.update(frames, completed=state.frames_sent)
            elif event.outcome.acquisition_id == name and event.outcome.state in FINAL_STATES:
                bar.console.print(outcome_line(event.outcome), soft_wrap=True)
                raise SystemExit(event.outcome.state != control_pb2.COMMAND_STATE_DONE)
