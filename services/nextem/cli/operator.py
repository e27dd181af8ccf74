"""``nextem operator``: experiments as Kubernetes objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
@click.option("--ray-cluster", default="", help="RayCluster of the analysis, whose workers are scaled.")
@click.option(
    "--images-per-worker",
    default=1000.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Images a second that one worker pod analyses.",
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
    ray_cluster: str,
    images_per_worker: float,
    tls: Path | None,
    token: Path | None,
    process: Running,
) -> None:
    """Carry out the experiments of a namespace, one by one on each instrument.

    It keeps nothing of its own: killed at any moment, it goes on from the objects and the log.
    """
    from nextem.operator.objects import NoCluster
    from nextem.operator.service import LeadershipLost, OperatorOptions, run_operator

    options = OperatorOptions(
        log=log or str(Home.at(process.home).log),
        namespace=namespace,
        holder=holder,
        lease=lease,
        store=store,
        ray_cluster=ray_cluster,
        images_per_worker_s=images_per_worker,
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


_namespace = click.option("--namespace", default="default", show_default=True)


@operator.command("bootstrap-keys")
@_namespace
@click.option("--instrument", "instruments", multiple=True, default=["simulator"], show_default=True)
@click.option("--host", "hosts", multiple=True, help="Name of the steering service, as it is dialled.")
@click.option(
    "--driver-host", "driver_hosts", multiple=True, help="Name of what serves an instrument's driver."
)
@click.option(
    "--left",
    default=1 / 3,
    show_default="a third",
    type=click.FloatRange(0, 1),
    help="What has less than this share of its time left is renewed; 1: everything, now.",
)
@click.option("--renew-only", is_flag=True, help="Make nothing that is not there.")
def bootstrap_keys(
    namespace: str,
    instruments: tuple[str, ...],
    hosts: tuple[str, ...],
    driver_hosts: tuple[str, ...],
    left: float,
    renew_only: bool,
) -> None:
    """Make the keys of an installation, as one secret a role, and renew what is soon over.

    The rest stays as it is, and so do the authority, all names, and secrets that somebody else has made.
    """
    from nextem.cli.key_maker import KeysMissing
    from nextem.cli.operator_keys import KeysIncomplete, Wanted, bootstrap
    from nextem.operator.objects import Secrets
    from nextem.wire.certificates import AuthorityUnusable
    from nextem.wire.key_folder import BadName

    with _told():
        try:
            done = bootstrap(Secrets(namespace), Wanted(instruments, hosts, driver_hosts, left, renew_only))
        except (KeysIncomplete, KeysMissing, AuthorityUnusable, BadName) as error:
            raise click.ClickException(str(error)) from error
    for name, what in done.items():
        click.echo(f"secret {namespace}/{name}: {what}")


@operator.command()
@_namespace
@click.option(
    "--lease", "leases", multiple=True, default=["nextem-operator"], show_default=True, help="Of operators."
)
@click.option(
    "--timeout-s", default=90.0, show_default=True, help="For how long scans may take to be stopped."
)
def cleanup(namespace: str, leases: tuple[str, ...], timeout_s: float) -> None:
    """Remove what an installation would leave: experiments, generated secrets, leases; say what is left.

    While the operator still runs it stops the scans of the experiments first.
    """
    from nextem.operator.objects import clean

    with _told():
        done = clean(namespace, leases, timeout_s)
    click.echo(f"removed {len(done.experiments)} experiments, {len(done.secrets)} generated secrets")
    for name in done.unanswered:
        click.echo(f"experiment {name}: no operator answered, its finalizer was taken away", err=True)
    click.echo(
        "left on purpose: products in the store; records in the log, unless its topics are removed too"
    )
    click.echo("left on purpose: the kind Experiment; kubectl delete crd experiments.nextem.dev removes it")
    for name in done.volumes:
        click.echo(f"left on purpose: volume claim {name}, with its data")


@contextmanager
def _told() -> Iterator[None]:
    """With the cluster; what it refuses is told in a line."""
    from nextem.operator.objects import ClusterError, cluster

    try:
        with cluster():
            yield
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
