"""Experiment objects for whoever asks for one: make, look, stop."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from nextem.operator.crd import GROUP, PLURAL, VERSION
from nextem.operator.objects import ClusterError, cluster, told

FIRST_S = 3.0
"""A cluster that does not answer for so long is not there."""


def cluster_that_knows() -> str:
    """Host of the cluster that the kubeconfig names, where it has the kind Experiment; else empty."""
    try:
        with cluster():
            found: Any = client.CustomObjectsApi()
            found.get_api_resources(GROUP, VERSION, _request_timeout=FIRST_S)
    except (ClusterError, OSError):
        return ""
    return str(found.api_client.configuration.host)


class Experiments:
    """Objects of one namespace. Every method raises :class:`~nextem.operator.objects.ClusterError`."""

    def __init__(self, namespace: str) -> None:
        with cluster():
            self._api: Any = client.CustomObjectsApi()
        self._where = (GROUP, VERSION, namespace, PLURAL)

    def create(self, body: dict[str, Any]) -> str:
        """Its name. The API server's own words where it is no experiment."""
        made = self._call(self._api.create_namespaced_custom_object, body, field_validation="Strict")
        return str(made["metadata"]["name"])

    def get(self, name: str) -> dict[str, Any] | None:
        """The whole object; None where there is none."""
        try:
            found: dict[str, Any] = self._api.get_namespaced_custom_object(*self._where, name)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise ClusterError(told(error)) from error
        return found

    def stop(self, name: str) -> None:
        """Has the operator stop it."""
        self._call(self._api.patch_namespaced_custom_object, name, {"spec": {"stop": True}})

    def _call(self, call: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return call(*self._where, *arguments, **named)
        except ApiException as error:
            raise ClusterError(told(error)) from error
