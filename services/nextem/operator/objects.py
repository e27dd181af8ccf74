"""Objects of a cluster beside experiments: secrets with keys, and what an installation leaves behind."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from nextem.operator.crd import GROUP, PLURAL, VERSION

PART_OF = {"app.kubernetes.io/part-of": "nextem"}
GENERATED = f"{GROUP}/generated"
"""Label of what we have made and may remove."""

POLL_S = 0.5


class ClusterError(Exception):
    """The API server is not known, cannot be reached, or refuses."""


class NoCluster(ClusterError):
    """Nothing says where the API server is."""


@contextmanager
def cluster() -> Iterator[None]:
    """Within, the API server can be asked. Raises :class:`ClusterError` for whatever it answers."""
    load_kubernetes()
    try:
        yield
    except ApiException as error:
        raise ClusterError(told(error)) from error
    except HTTPError as error:
        raise ClusterError(str(error)) from error


def told(error: ApiException) -> str:
    """What the API server says, for people."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


def load_kubernetes() -> None:
    """From the pod we run in, else from the kubeconfig. Raises :class:`NoCluster`."""
    try:
        kubernetes_config.load_incluster_config()
    except kubernetes_config.ConfigException:
        try:
            kubernetes_config.load_kube_config()
        except kubernetes_config.ConfigException as error:
            raise NoCluster(f"no pod's service account, and no kubeconfig: {error}") from error


class Secrets:
    """Secrets of one namespace. Every method may raise :class:`kubernetes.client.ApiException`."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._api: Any = client.CoreV1Api()

    def read(self, name: str) -> dict[str, bytes] | None:
        """Its files; None where there is no such secret."""
        try:
            found = self._api.read_namespaced_secret(name, self._namespace)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return {file: base64.b64decode(text) for file, text in (found.data or {}).items()}

    def create(self, name: str, files: Mapping[str, bytes]) -> bool:
        """Whether it was made; one that is there already stays as it is."""
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name=name, labels={**PART_OF, GENERATED: "true"}),
            type="Opaque",
            data={file: base64.b64encode(content).decode() for file, content in files.items()},
        )
        try:
            self._api.create_namespaced_secret(self._namespace, body)
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                return False
            raise
        return True

    def update(self, name: str, files: Mapping[str, bytes]) -> bool:
        """Replaces some files of one that we have made; False where it is not ours or changed meanwhile."""
        found = self._api.read_namespaced_secret(name, self._namespace)
        if (found.metadata.labels or {}).get(GENERATED) != "true":
            return False
        found.data |= {file: base64.b64encode(content).decode() for file, content in files.items()}
        try:
            self._api.replace_namespaced_secret(name, self._namespace, found)
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                return False
            raise
        return True


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was removed, and what was left on purpose; names of objects."""

    experiments: tuple[str, ...]
    unanswered: tuple[str, ...]
    secrets: tuple[str, ...]
    leases: tuple[str, ...]
    volumes: tuple[str, ...]


def clean(namespace: str, leases: tuple[str, ...], timeout_s: float) -> Cleaned:
    """Removes experiments, the secrets that we made, and leases of operators.

    An operator that runs stops their scans first. After ``timeout_s`` the finalizers of those
    that are left are taken away (``unanswered``). Raises :class:`kubernetes.client.ApiException`.
    """
    experiments, unanswered = _experiments(namespace, timeout_s)
    core: Any = client.CoreV1Api()
    selector = f"{GENERATED}=true"
    secrets = _names(core.list_namespaced_secret(namespace, label_selector=selector))
    for name in secrets:
        _gone(core.delete_namespaced_secret, name, namespace)
    coordination: Any = client.CoordinationV1Api()
    there = [name for name in _names(coordination.list_namespaced_lease(namespace)) if name in leases]
    for name in there:
        _gone(coordination.delete_namespaced_lease, name, namespace)
    volumes = _names(core.list_namespaced_persistent_volume_claim(namespace))
    return Cleaned(experiments, unanswered, secrets, tuple(there), volumes)


def _experiments(namespace: str, timeout_s: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    custom: Any = client.CustomObjectsApi()
    where = (GROUP, VERSION, namespace, PLURAL)

    def left() -> list[str]:
        try:
            found = custom.list_namespaced_custom_object(*where)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:  # the definition has gone
                return []
            raise
        return [each["metadata"]["name"] for each in found["items"]]

    names = left()
    for name in names:
        _gone(custom.delete_namespaced_custom_object, *where, name)
    until_s = time.monotonic() + timeout_s
    while (waiting := left()) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    for name in waiting:
        _gone(custom.patch_namespaced_custom_object, *where, name, {"metadata": {"finalizers": None}})
    return tuple(names), tuple(waiting)


def _gone(call: Any, *arguments: Any) -> None:
    """Calls; what is not there any more is no error."""
    try:
        call(*arguments)
    except ApiException as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise


def _names(found: Any) -> tuple[str, ...]:
    return tuple(each.metadata.name for each in found.items)
