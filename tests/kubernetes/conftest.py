"""One release of the charts with the quickstart, on the cluster that KUBECONFIG names, for the whole folder.

``make test-kubernetes`` runs this folder; ``make test`` leaves it out. Tests run in the order of their files:
the images, the install, what is refused, what a running release survives, the uninstall.

NEXTEM_TEST_LOAD is the command that brings images to the nodes (``kind load docker-image`` unless told);
NEXTEM_TEST_IMAGES=ready says that this checkout's images are there. NEXTEM_TEST_VOLUMES is for a cluster
without a storage class, see ``durable``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cluster_kit import (
    COMPONENTS,
    DEPLOYABLES,
    ROOT,
    Namespace,
    Refused,
    Release,
    helm,
    image_of,
    local_volume,
    run,
    wait_until,
)

NAMESPACE, RELEASE = "nextem-test", "nextem"
RUNS = bool(os.environ.get("NEXTEM_TEST_KUBERNETES"))
if not RUNS:
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="session")
def engine() -> str:
    """The command of the image engine."""
    engine = os.environ.get("ENGINE", "docker")
    try:
        run(engine, "version", timeout_s=20)
    except (Refused, OSError) as error:
        pytest.skip(f"needs an image engine ({engine}): {error}")
    return engine


@pytest.fixture(scope="session")
def built(engine: str) -> dict[str, str]:
    """The images by deployable, built from this checkout unless NEXTEM_TEST_IMAGES says ready."""
    if os.environ.get("NEXTEM_TEST_IMAGES") != "ready":
        subprocess.run(["images/make.sh"], cwd=ROOT, check=True, timeout=1200)
    return {deployable: image_of(deployable) for deployable in DEPLOYABLES}


@pytest.fixture(scope="session")
def cluster() -> str:
    """The API server's version."""
    try:
        return run("kubectl", "version", "-o", "json", timeout_s=20)
    except (Refused, OSError) as error:
        pytest.skip(f"needs a cluster, which KUBECONFIG names: {error}")


@pytest.fixture(scope="session")
def loaded(cluster: str, built: dict[str, str]) -> dict[str, str]:
    """The images, on the cluster's nodes."""
    if os.environ.get("NEXTEM_TEST_IMAGES") != "ready":
        load = shlex.split(os.environ.get("NEXTEM_TEST_LOAD", "kind load docker-image"))
        run(*load, *built.values(), timeout_s=600)
    return built


@pytest.fixture(scope="session")
def durable(cluster: str) -> Iterator[bool]:
    """Whether the quickstart's Kafka and S3 server outlive their pods: by the cluster's storage class, or in

    folders under NEXTEM_TEST_VOLUMES, which is on the one node and on this machine.
    """
    folder = os.environ.get("NEXTEM_TEST_VOLUMES")
    if folder is None:
        yield "true" in run(
            "kubectl", "get", "storageclass", "-o", "jsonpath={.items[*].metadata.annotations}"
        )
        return
    names = [f"data-{RELEASE}-{server}-0" for server in ("kafka", "s3")]
    for name in names:
        Path(folder, name).mkdir(parents=True)
        volume = local_volume(NAMESPACE, name, Path(folder, name))
        run("kubectl", "apply", "-f", "-", input=json.dumps(volume))
    yield True
    run("kubectl", "delete", "persistentvolume", *names, "--ignore-not-found")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def release(loaded: dict[str, str], durable: bool) -> Iterator[Release]:
    """The quickstart, installed and ready. What `test_uninstall` has not removed is removed at the end."""
    namespace = Namespace(NAMESPACE)
    run("kubectl", "create", "namespace", namespace.name)
    run("kubectl", "label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted")
    started = time.monotonic()
    persistence = f"quickstart.persistence.enabled={str(durable).lower()}"
    try:
        run(*helm("install", RELEASE, namespace, persistence), timeout_s=600)
        for component in COMPONENTS:
            wait_until(f"{component} is ready", partial(namespace.ready, component), 400)
        yield Release(RELEASE, namespace, time.monotonic() - started, persistence)
    except BaseException:
        print(namespace.kubectl("get", "pods", "-o", "wide"))
        for component in COMPONENTS:
            print(namespace.logs(component))
        raise
    finally:
        subprocess.run(
            ["helm", "uninstall", RELEASE, "-n", namespace.name, "--ignore-not-found"], timeout=400
        )
        run("kubectl", "delete", "namespace", namespace.name, "--ignore-not-found", timeout_s=400)
