"""``nextem operator``: experiments as Kubernetes objects."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli.connect import as_whom, connect
from nextem.cli.home import Home
from nextem.cli.process_options import Running, common, log_option
from nextem.cli.settings import Process
from nextem.cli.steer import STEERING

CRD_FILE = "experiments.yaml"


@click.group()
def operator() -> None:
    """Carries out experiments that lie in a Kubernetes cluster as objects.

    \b
    nextem operator crd --out helm/nextem/crds    the definition of the object
    nextem operator run --namespace em --steering nextem-steering:50051 --log kafka://kafka:9092
    """


@operator.command(cls=Process, table="operator")
@log_option
@click.option("--namespace", default="default", show_default=True, help="Whose experiments are carried out.")
@click.option("--steering", default=STEERING, show_default=True, help="Steering service, HOST:PORT.")
@click.option(
    "--holder", default="experiments", show_default=True, help="Issuer of the commands, as in the token."
)
@click.option("--store", default="", help="Address of the store, for the products' addresses.")
@click.option(
    "--lease",
    default="nextem-operator",
    show_default=True,
    help="Lease object by which one of several leads.",
)
@as_whom
@common
def run(
    log: str | None,
    namespace: str,
    steering: str,
    holder: str,
    store: str,
    lease: str,
    tls: Path | None,
    token: Path | None,
    process: Running,
) -> None:
    """Carry out the experiments of a namespace, one by one on each instrument.

    It keeps nothing of its own: killed at any moment, it goes on from the objects and the log.
    """
    from nextem.operator.service import LeadershipLost, NoCluster, OperatorOptions, run_operator

    options = OperatorOptions(
        log=log or str(Home.at(process.home).log),
        namespace=namespace,
        holder=holder,
        lease=lease,
        store=store,
    )
    try:
        with connect(steering, process.home, tls, token) as client:
            told = {"namespace": namespace}
            run_operator(options, client, process.stop, lambda: process.tell_ready(told), process.health)
    except (NoCluster, LeadershipLost) as error:
        raise click.ClickException(str(error)) from error


@operator.command()
@click.option("--out", type=click.Path(path_type=Path), help=f"Folder in which to write {CRD_FILE}.")
def crd(out: Path | None) -> None:
    """Print the CustomResourceDefinition of Experiment, made from the contract."""
    from nextem.operator.crd import as_yaml

    if out is None:
        click.echo(as_yaml(), nl=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / CRD_FILE).write_text(as_yaml())
    click.echo(str(out / CRD_FILE))
