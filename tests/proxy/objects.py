"""Services and EndpointSlices for tests, in few words."""

from __future__ import annotations

from typing import Any


def service(
    name: str = "web", ip: str = "10.96.0.50", ports: list[dict[str, Any]] | None = None, labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    ports = ports if ports is not None else [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "labels": labels or {}},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "ports": ports, **spec},
    }  # fmt: skip


def endpoint(ip: str, node: str = "n1", ready: bool = True, serving: bool | None = None, terminating: bool = False, **more: Any) -> dict[str, Any]:
    conditions: dict[str, Any] = {"ready": ready, "terminating": terminating}
    conditions["serving"] = ready if serving is None else serving
    return {"addresses": [ip], "nodeName": node, "conditions": conditions, **more}


def slice_(endpoints: list[dict[str, Any]], name: str = "web", ports: list[dict[str, Any]] | None = None, suffix: str = "1", **more: Any) -> dict[str, Any]:
    ports = ports if ports is not None else [{"name": "http", "port": 8080, "protocol": "TCP"}]
    return {
        "metadata": {"namespace": "default", "name": f"{name}-{suffix}", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports, **more,
    }  # fmt: skip
