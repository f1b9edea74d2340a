"""Tables: columns of every kind and rows of pods as upstream recorded them, ages, JSONPaths of custom columns."""

import gzip
import json
import re
from pathlib import Path

import orjson
import pytest

from fastkube.api import resources, tables
from fastkube.api.tables import core, custom, model
from fastkube.runtime import clock

ORACLE = Path(__file__).parents[2] / "../shared/reference/oracle.jsonl.gz"


class Stopped:
    def now(self):
        return clock.parse("2026-11-20T12:00:00Z")

    monotonic = now


@pytest.fixture(autouse=True)
def stopped_clock():
    previous = clock.use(Stopped())
    yield
    clock.use(previous)


@pytest.mark.parametrize(
    "seconds, text",
    [(-5, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (600, "10m"), (10799, "179m"), (10800, "3h"), (11000, "3h3m"),
     (8 * 3600, "8h"), (47 * 3600, "47h"), (48 * 3600, "2d"), (49 * 3600, "2d1h"), (8 * 86400, "8d"), (729 * 86400, "729d"), (730 * 86400, "2y"),
     (740 * 86400, "2y10d"), (9 * 365 * 86400, "9y")],
)  # fmt: skip
def test_durations_read_as_kubectls(seconds, text):
    assert model.duration(seconds) == text


def row_of(group, kind, obj):
    shown_by = tables.of_kind(group, kind)
    table = orjson.loads(tables.render(shown_by, [orjson.dumps(obj)]))
    cells = table["rows"][0]["cells"]
    assert len(cells) == len(table["columnDefinitions"])
    return cells


def pod(status, spec=None, **meta):
    meta = {"name": "p", "creationTimestamp": "2026-11-20T11:50:00Z", "resourceVersion": "7", **meta}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec or {"containers": [{"name": "c"}]}, "status": status}


def state(**of):
    return {"name": "c", "state": of}


@pytest.mark.parametrize(
    "obj, want",
    [
        (pod({"phase": "Pending"}), ("0/1", "Pending", "0")),
        (pod({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}), ("0/1", "SchedulingGated", "0")),
        (pod({"phase": "Running", "containerStatuses": [{**state(running={}), "ready": True}]}), ("1/1", "Running", "0")),
        (pod({"phase": "Running", "containerStatuses": [{**state(waiting={"reason": "CrashLoopBackOff"}), "restartCount": 3,
              "lastState": {"terminated": {"finishedAt": "2026-11-20T11:59:00Z"}}}]}), ("0/1", "CrashLoopBackOff", "3 (60s ago)")),
        (pod({"phase": "Running", "containerStatuses": [{**state(running={}), "ready": True}]}, deletionTimestamp="2026-11-20T11:59:00Z"), ("1/1", "Terminating", "0")),
        (pod({"phase": "Succeeded", "containerStatuses": [state(terminated={"exitCode": 0, "reason": "Completed"})]}, deletionTimestamp="2026-11-20T11:59:00Z"), ("0/1", "Completed", "0")),
        (pod({"phase": "Running", "reason": "NodeLost"}, deletionTimestamp="2026-11-20T11:59:00Z"), ("0/1", "Unknown", "0")),
        (pod({"phase": "Failed", "containerStatuses": [state(terminated={"exitCode": 3})]}), ("0/1", "ExitCode:3", "0")),
        (pod({"phase": "Failed", "containerStatuses": [state(terminated={"exitCode": 137, "signal": 9})]}), ("0/1", "Signal:9", "0")),
        (pod({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [state(terminated={"exitCode": 0, "reason": "Completed"}), {**state(running={}), "ready": True}]},
             {"containers": [{}, {}]}), ("1/2", "Running", "0")),
        (pod({"phase": "Running", "containerStatuses": [state(terminated={"exitCode": 0, "reason": "Completed"}), {**state(running={}), "ready": True}]}, {"containers": [{}, {}]}), ("1/2", "NotReady", "0")),
        (pod({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]},
             {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{}]}), ("0/1", "Init:1/2", "0")),
        (pod({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}, {"initContainers": [{"name": "i"}], "containers": [{}]}), ("0/1", "Init:0/1", "0")),
        (pod({"phase": "Running", "initContainerStatuses": [{"name": "s", "started": True, "ready": True, "restartCount": 2, "state": {"running": {}}}],
              "containerStatuses": [{**state(running={}), "ready": True, "restartCount": 1}]},
             {"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{}]}), ("2/2", "Running", "3")),
    ],
)  # fmt: skip
def test_pod_state(obj, want):
    assert core.pod_state(obj) == want


def test_rows_carry_what_was_asked_for():
    raw = orjson.dumps(pod({"phase": "Succeeded"}))
    shown_by = tables.of_kind("", "Pod")
    table = orjson.loads(tables.render(shown_by, [raw]))
    assert table["kind"] == "Table" and table["apiVersion"] == "meta.k8s.io/v1" and table["metadata"] == {"resourceVersion": "7"}
    [row] = table["rows"]
    assert row["cells"] == ["p", "0/1", "Succeeded", "0", "10m", "<none>", "<none>", "<none>", "<none>"]
    assert row["conditions"][0]["type"] == "Completed"
    assert row["object"] == {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": orjson.loads(raw)["metadata"]}
    assert "object" not in orjson.loads(tables.render(shown_by, [raw], "None"))["rows"][0]
    assert orjson.loads(tables.render(shown_by, [raw], "Object", version="v1beta1"))["rows"][0]["object"] == orjson.loads(raw)
    assert orjson.loads(tables.render(shown_by, [], list_meta={"resourceVersion": "9"}, headers=False)) == {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "9"}, "columnDefinitions": None, "rows": [],
    }  # fmt: skip


META = {"name": "x", "creationTimestamp": "2026-11-20T11:00:00Z"}


@pytest.mark.parametrize(
    "group, kind, obj, want",
    [
        ("apps", "Deployment", {"spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
                                "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}, ["x", "2/3", 3, 1, "60m", "c", "i", "a=1,b=2"]),
        ("", "Service", {"spec": {"type": "NodePort", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"a": "b"}}},
         ["x", "NodePort", "10.96.0.5", "<none>", "80:30080/TCP", "60m", "a=b"]),
        ("", "Service", {"spec": {"type": "LoadBalancer"}}, ["x", "LoadBalancer", "<none>", "<pending>", "<none>", "60m", "<none>"]),
        ("", "Node", {"metadata": {**META, "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "w"}}, "spec": {"unschedulable": True},
                      "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}},
         ["x", "NotReady,SchedulingDisabled", "control-plane,w", "60m", "v1.36.0", "10.0.0.1", "<none>", "<unknown>", "<unknown>", "<unknown>"]),
        ("batch", "Job", {"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-11-20T11:59:00Z"}}, ["x", "Running", "1/2", "60s", "60m", "", "", "<none>"]),
        ("batch", "CronJob", {"spec": {"schedule": "* * * * *", "suspend": False}, "status": {"active": [{}]}}, ["x", "* * * * *", "<none>", "False", 1, "<none>", "60m", "", "", "<none>"]),
        ("", "PersistentVolumeClaim", {"spec": {"volumeName": "v", "storageClassName": "s"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}},
         ["x", "Bound", "v", "1Gi", "RWO", "s", "<unset>", "60m", "<unset>"]),
        ("autoscaling", "HorizontalPodAutoscaler",
         {"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}},
         ["x", "Deployment/d", "cpu: <unknown>/80%", "1", 5, 0, "60m"]),
        ("networking.k8s.io", "Ingress", {"spec": {"rules": [{"host": h} for h in "abcde"], "tls": [{}]}}, ["x", "<none>", "a,b,c + 2 more...", "", "80, 443", "60m"]),
        ("", "Event", {"involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "Started", "message": " hi \n", "lastTimestamp": "2026-11-20T11:59:30Z", "firstTimestamp": "2026-11-20T11:58:00Z",
                       "count": 4, "source": {"component": "kubelet", "host": "n"}}, ["30s", "Normal", "Started", "pod/p", "", "kubelet, n", "hi", "2m", 4, "x"]),
        ("", "Endpoints", {"subsets": [{"addresses": [{"ip": f"10.0.0.{i}"} for i in range(5)], "ports": [{"port": 80}]}]}, ["x", "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 + 2 more...", "60m"]),
        ("", "ResourceQuota", {"status": {"hard": {"pods": "5", "limits.cpu": "2"}, "used": {"pods": "1"}}}, ["x", "pods: 1/5", "limits.cpu: 0/2", "60m"]),
        ("storage.k8s.io", "StorageClass", {"metadata": {**META, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"},
         ["x (default)", "p", "Delete", "Immediate", False, "60m"]),
        ("rbac.authorization.k8s.io", "RoleBinding", {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]},
         ["x", "Role/r", "60m", "u", "", "n/s"]),
        ("rbac.authorization.k8s.io", "Role", {}, ["x", "2026-11-20T11:00:00Z"]),
    ],
)  # fmt: skip
def test_rows(group, kind, obj, want):
    assert row_of(group, kind, {"metadata": META, **obj}) == want


@pytest.mark.parametrize("resource", [r for r in resources.builtin() if "list" in r.verbs], ids=str)
def test_an_empty_object_of_every_kind_has_a_row(resource):
    shown_by = tables.printer(resource)
    table = orjson.loads(tables.render(shown_by, [b'{"metadata":{"name":"x"}}', b"{}", b'{"metadata":{"name":"x"},"spec":null,"status":null}']))
    assert all(len(r["cells"]) == len(shown_by.columns) for r in table["rows"])


OBJ = {
    "metadata": {"name": "n", "labels": {"a.b/c": "v"}, "creationTimestamp": "2026-11-20T11:00:00Z"},
    "spec": {"n": 3, "f": 1.5, "list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}], "on": True, "nothing": None},
}


@pytest.mark.parametrize(
    "path, want",
    [(".spec.n", [3]), ("{.spec.n}", [3]), ("spec.n", [3]), (r".metadata.labels.a\.b/c", ["v"]), (".metadata.labels['a.b/c']", ["v"]), (".spec.list[1].k", ["b"]),
     (".spec.list[-1].k", ["b"]), (".spec.list[*].v", [1, 2]), ('.spec.list[?(@.k=="b")].v', [2]), (".spec.list[?(@.v>1)].k", ["b"]), (".spec.list[?(@.k!='a')].v", [2]),
     (".spec.absent.x", []), (".spec.list[7]", [])],
)  # fmt: skip
def test_json_paths(path, want):
    assert custom.find(path, OBJ) == want


@pytest.mark.parametrize("path", [".spec[", ".spec..n!", "[?(x)]"])
def test_json_path_that_is_none(path):
    with pytest.raises(ValueError):
        custom.compile_path(path)


def test_custom_columns_by_type():
    definitions = [
        {"name": "N", "type": "integer", "jsonPath": ".spec.f"}, {"name": "F", "type": "number", "jsonPath": ".spec.f"}, {"name": "S", "type": "string", "jsonPath": ".spec.list[0]"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on", "priority": 1, "description": "whether"}, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Wrong", "type": "integer", "jsonPath": ".metadata.name"}, {"name": "Null", "type": "string", "jsonPath": ".spec.nothing"}, {"name": "None", "type": "string", "jsonPath": ".x"},
    ]  # fmt: skip
    shown_by = custom.printer(definitions)
    table = orjson.loads(tables.render(shown_by, [orjson.dumps(OBJ)]))
    assert table["rows"][0]["cells"] == ["n", 1, 1.5, '{"k":"a","v":1}', True, "60m", None, None, None]
    assert table["columnDefinitions"][4] == {"name": "On", "type": "boolean", "format": "", "description": "whether", "priority": 1}
    assert orjson.loads(tables.render(custom.printer(None), [orjson.dumps(OBJ)]))["rows"][0]["cells"] == ["n", "60m"]


def recorded():
    for line in gzip.decompress(ORACLE.read_bytes()).splitlines():
        case = json.loads(line)
        last = {}
        for step in case.get("steps", [case]):
            path = step["path"].split("?")[0]
            answer = step["answer"]
            if isinstance(answer, dict) and answer.get("kind") == "Table":
                yield case["id"], path, answer, last.get(path)
            elif isinstance(answer, dict) and step["code"] < 300 and "metadata" in answer and answer["kind"] != "PartialObjectMetadata":
                last[path.removesuffix("/status") if step["method"] != "POST" else f"{path}/{answer['metadata'].get('name')}"] = answer


@pytest.mark.skipif(not ORACLE.exists(), reason="no reference data beside the checkout")
def test_upstreams_recorded_tables():
    rows = 0
    for case, path, want, obj in recorded():
        m = re.fullmatch(r"/apis?(?:/([^/]+\.?[^/]*))?/(v\d+)(?:/namespaces/[^/]+)?/([a-z]+)(?:/[^/]+)?", path)
        resource = resources.find(m[1] or "", m[2], m[3])
        if resource is None:
            continue
        shown_by = tables.printer(resource)
        assert [[c.name, c.type, c.format, c.priority] for c in shown_by.columns] == want["columns"], case
        if want.get("rows") and obj:
            obj["metadata"]["creationTimestamp"] = "2026-11-20T11:00:00Z"
            got = ["<age>" if c == "60m" else c for c in shown_by.cells(obj)]
            assert [got] == want["rows"], (case, obj.get("status", obj))
            rows += 1
    assert rows > 10
