"""The protobuf codec on a pod as Go clients send it."""

import pytest

from fastkube.api import protobuf

CONTAINER = {
    "name": "c", "image": "registry.example/app:1", "ports": [{"containerPort": 80, "protocol": "TCP"}], "env": [{"name": f"E{i}", "value": "x" * 20} for i in range(10)],
    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}, "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
}  # fmt: skip
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default", "labels": {"app": "x"}, "creationTimestamp": "2026-11-20T22:43:00Z"},
    "spec": {"containers": [CONTAINER] * 3, "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 30},
}  # fmt: skip


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_pod(benchmark, direction):
    body = protobuf.encode(POD)
    benchmark(protobuf.decode, body) if direction == "decode" else benchmark(protobuf.encode, POD)
