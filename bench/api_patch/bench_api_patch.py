"""What every write and every `kubectl get` costs in this room: field tracking, apply, patches, tables, custom resources' checks. Figures are per object."""

import copy

import orjson
import pytest

from fastkube._ext import fieldset
from fastkube.api import apply, managedfields, rules, schema, tables, values
from fastkube.api.patch import json, merge, strategic

POD = schema.of("", "v1", "Pod")
TIME = "2026-11-20T00:00:00Z"


def pod():
    """A pod of 5 KB, as a Deployment's look when they run."""
    container = {
        "name": "web", "image": "registry.example.com/web:1.2.3", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}, {"containerPort": 9090, "protocol": "TCP"}], "env": [{"name": f"VAR_{i}", "value": str(i)} for i in range(8)],
        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "250m", "memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1, "failureThreshold": 3},
        "volumeMounts": [{"mountPath": "/etc/web", "name": "config"}, {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "kube-api-access-abcde", "readOnly": True}],
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-7d4b8-x2x4z", "generateName": "web-7d4b8-", "namespace": "default", "uid": "u", "labels": {"app": "web", "pod-template-hash": "7d4b8"}, "resourceVersion": "9", "creationTimestamp": TIME,
                     "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b8", "uid": "o", "controller": True, "blockOwnerDeletion": True}]},
        "spec": {"containers": [container], "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "serviceAccountName": "default", "nodeName": "n1", "terminationGracePeriodSeconds": 30,
                 "securityContext": {}, "enableServiceLinks": True, "priority": 0, "volumes": [{"name": "config", "configMap": {"name": "web", "defaultMode": 420}}]},
        "status": {},
    }  # fmt: skip


RUNNING = {
    "phase": "Running", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}], "hostIP": "10.245.0.2", "startTime": TIME, "qosClass": "Burstable",
    "conditions": [{"type": t, "status": "True", "lastProbeTime": None, "lastTransitionTime": TIME} for t in ("Initialized", "Ready", "ContainersReady", "PodScheduled")],
    "containerStatuses": [{"name": "web", "ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": TIME}}, "image": "i", "imageID": "j", "containerID": "k"}],
}  # fmt: skip


def tracked():
    obj = pod()
    obj["metadata"]["managedFields"] = managedfields.update(None, obj, "kube-controller-manager", "Update", "v1", "", TIME, POD, ignore={"f:status": {}})
    return obj


def test_track_create(benchmark):
    obj = pod()
    benchmark(managedfields.update, None, obj, "kube-controller-manager", "Update", "v1", "", TIME, POD, ignore={"f:status": {}})


def test_track_status_update(benchmark):
    old = tracked()
    new = {**copy.deepcopy(old), "status": RUNNING}
    benchmark(managedfields.update, old, new, "kubelet", "Update", "v1", "status", TIME, POD, ignore={"f:spec": {}})


def test_track_update_that_changes_nothing(benchmark):
    old = tracked()
    new = orjson.loads(orjson.dumps(old))
    benchmark(managedfields.update, old, new, "kubelet", "Update", "v1", "", TIME, POD)


def test_compare_alike(benchmark):
    old = tracked()
    new = orjson.loads(orjson.dumps(old))
    benchmark(fieldset.compare, old, new, POD)


def test_apply_again(benchmark):
    applied = {k: v for k, v in pod().items() if k != "status"}
    applied["metadata"] = {"name": "web-7d4b8-x2x4z", "labels": {"app": "web"}}
    live = apply.apply(tracked(), applied, "me", True, POD, api_version="v1", time=TIME)
    benchmark(apply.apply, live, applied, "me", False, POD, api_version="v1", time=TIME)


PATCHES = {
    "json": (json.apply, [{"op": "replace", "path": "/spec/containers/0/image", "value": "x"}]),
    "merge": (merge.apply, {"status": RUNNING}),
    "strategic": (
        lambda obj, body: strategic.apply(obj, body, POD),
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}, "metadata": {"labels": {"a": "b"}}},
    ),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_patch(benchmark, kind):
    patch, body = PATCHES[kind]
    raw, document = orjson.dumps(body), {**pod(), "status": RUNNING}
    benchmark(lambda obj: patch(obj, raw), document)


def test_table_of_500_pods(benchmark):
    raw = orjson.dumps({**tracked(), "status": RUNNING})
    shown_by = tables.of_kind("", "Pod")
    benchmark(tables.render, shown_by, [raw] * 500, "Metadata")


CUSTOM = {"type": "object", "properties": {"spec": {"type": "object", "required": ["n"], "properties": {
    "n": {"type": "integer", "minimum": 0}, "mode": {"type": "string", "default": "a", "enum": ["a", "b"]}, "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}}},
    "x-kubernetes-validations": [{"rule": "self.n < 100"}, {"rule": "self.mode != 'b' || self.n > 1"}]}}}  # fmt: skip


def test_custom_values_and_rules(benchmark):
    obj = {"spec": {"n": 3, "mode": "a", "list": [{"k": "v"}] * 10}}
    compiled = rules.Rules(CUSTOM)

    def check():
        values.default(obj, CUSTOM)
        return values.validate(obj, CUSTOM) + compiled.check(obj, None)

    assert benchmark(check) == []
