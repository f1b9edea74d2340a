"""Laws that every kind's rules keep, and what the recording cannot show: status, subresources, graceful deletion, generations."""

import copy
import json

import pytest

from fastkube.api import codec, convert, errors, kinds, meta, resources, schema
from fastkube.api.kinds import cron
from fastkube.api.kinds.base import Kind
from tests.api import oracle

STORED = [r for r in resources.builtin() if "create" in r.verbs and "get" in r.verbs]


def made(path, body, namespace="oracle"):
    """An object as it would be stored, through the served version."""
    resource = resources.parse(path)
    obj, _ = codec.read(json.dumps(body).encode(), "application/json", resource.group, resource.version, resource.kind)
    rules = kinds.of(resource.group, resource.kind)
    rules.default(obj)
    meta.prepare_create(obj, namespace if resource.namespaced else None, resource.namespaced)
    meta.fill_create(obj, oracle.NOW, "0000", "abcde")
    rules.prepare_create(obj)
    assert not meta.validate_create(rules, obj, resource.namespaced) + rules.validate_create(obj)
    obj["metadata"]["resourceVersion"] = "1"
    return rules, obj


def pod(**spec):
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def template(**labels):
    return {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def deployment(**spec):
    return {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template(a="b"), **spec}}


@pytest.mark.parametrize("resource", STORED, ids=str)
def test_every_kind_has_rules(resource):
    rules = kinds.of(resource.group, resource.kind)
    assert type(rules) is not Kind and rules.kind == resource.kind and rules.group == resource.group
    assert rules.has_status == ("status" in resource.subresources) or resource.kind in ("Pod", "Namespace") or not rules.has_status


@pytest.mark.parametrize("resource", STORED, ids=str)
def test_an_empty_object_is_answered_not_crashed_on(resource):
    rules = kinds.of(resource.group, resource.kind)
    for body in ({}, {"metadata": {"name": "x"}}, {"metadata": {"name": "x"}, "spec": {}}):
        obj, _ = codec.read(json.dumps(body).encode(), "application/json", resource.group, resource.version, resource.kind)
        obj = convert.to_storage(resource, obj)
        rules.default(obj)
        meta.prepare_create(obj, "ns" if resource.namespaced else None, resource.namespaced)
        meta.fill_create(obj, oracle.NOW, "0000", "abcde")
        rules.prepare_create(obj)
        found = meta.validate_create(rules, obj, resource.namespaced) + rules.validate_create(obj)
        assert all(e.reason and e.message for e in found)
        rules.warnings(obj)
        rules.fields(obj)
        codec.encode(obj)


@pytest.mark.skipif(not oracle.REFERENCE.exists(), reason="the recording lies in ../shared")
def test_what_was_stored_is_taken_again_and_changes_nothing():
    seen = 0
    for case in oracle.cases():
        if case["code"] != 201 or case["method"] != "POST":
            continue
        resource, namespace, _ = oracle.find(case["path"])
        obj, _ = oracle.create(resource, namespace, case["body"], "Ignore")
        rules = kinds.of(*convert.storage_kind(resource))
        again = copy.deepcopy(obj)
        group, _, version = resource.storage_version.rpartition("/")
        assert schema.decode(schema.of(group, version, resource.kind), again) == [], case["id"]
        rules.default(again)
        assert again == obj, case["id"]
        obj["metadata"]["resourceVersion"] = again["metadata"]["resourceVersion"] = "1"
        meta.prepare_update(again, obj, namespace, resource.namespaced)
        rules.prepare_update(again, obj)
        assert again["metadata"].get("generation") == obj["metadata"].get("generation"), case["id"]
        assert not meta.validate_update(again, obj) + rules.validate_update(again, obj), case["id"]
        seen += 1
    assert seen > 400


def test_generation_counts_changes_of_spec_only():
    rules, old = made("apps/v1/deployments", deployment())
    for change, counted in (({"metadata": {"labels": {"x": "y"}}}, 1), ({"spec": {"replicas": 5}}, 2), ({"status": {"replicas": 3}}, 1)):
        obj = copy.deepcopy(old)
        for key, value in change.items():
            obj[key].update(value)
        rules.prepare_update(obj, old)
        assert obj["metadata"]["generation"] == counted
        assert obj["status"] == old["status"]


def test_status_update_keeps_the_rest():
    rules, old = made("apps/v1/deployments", deployment())
    obj = copy.deepcopy(old)
    obj["spec"]["replicas"] = 9
    obj["status"] = {"replicas": 1, "observedGeneration": 1}
    rules.prepare_status(obj, old)
    assert obj["spec"] == old["spec"] and obj["status"]["replicas"] == 1
    assert not rules.validate_status(obj, old)
    obj["status"]["readyReplicas"] = 2
    assert [e.field for e in rules.validate_status(obj, old)] == ["status.readyReplicas"]
    obj["status"] = {"availableReplicas": -1, "replicas": -3, "readyReplicas": -2}  # the absent count is 0, which is more than -3
    assert "status.updatedReplicas" in [e.field for e in rules.validate_status(obj, old)]


@pytest.mark.parametrize(
    "path, body, taken",
    [
        ("v1/pods", pod(), {"labels", "annotations", "finalizers"}),
        ("apps/v1/deployments", deployment(), {"annotations", "finalizers", "ownerReferences"}),
        ("v1/nodes", {"metadata": {"name": "n"}}, {"labels", "annotations", "finalizers", "ownerReferences"}),
        ("storage.k8s.io/v1/volumeattachments", {"metadata": {"name": "a"}, "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}, set()),
    ],
)  # fmt: skip
def test_what_of_metadata_a_status_update_changes(path, body, taken):
    rules, old = made(path, body)
    sent = {"labels": {"x": "y"}, "annotations": {"x": "y"}, "finalizers": ["a.b/c"], "ownerReferences": [{"uid": "1"}]}
    obj = {**copy.deepcopy(old), "metadata": {**old["metadata"], **sent, "generation": 7}}
    rules.prepare_status(obj, old)
    assert obj["metadata"] == {**old["metadata"], **{k: v for k, v in sent.items() if k in taken}}


def test_annotations_of_a_deployment_count():
    rules, old = made("apps/v1/deployments", deployment())
    for metadata, generation in (({"labels": {"x": "y"}}, 1), ({"annotations": {}}, 1), ({"annotations": {"x": "y"}}, 2)):
        obj = {**copy.deepcopy(old), "metadata": {**old["metadata"], **metadata}}
        rules.prepare_update(obj, old)
        assert obj["metadata"]["generation"] == generation


def test_empty_labels_of_a_template():
    """They are seen where a selector misses them, and gone otherwise."""
    with pytest.raises(errors.ApiError, match=r"spec.template.metadata.labels: Invalid value: {}: `selector` does not match"):
        oracle.create(resources.parse("apps/v1/deployments"), "d", deployment(template=template()), "Strict")
    absent = {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}
    _, obj = made("apps/v1/deployments", deployment(template=template(), selector=absent))
    assert obj["spec"]["template"]["metadata"] == {}


@pytest.mark.parametrize(
    "requests, limits, qos",
    [
        ({}, {}, "BestEffort"), ({"cpu": "1"}, {}, "Burstable"), ({"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"), ({"cpu": "500m"}, {"cpu": "1", "memory": "1Gi"}, "Burstable"), ({"cpu": "1000m", "memory": "1024Mi"}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({"example.com/gpu": "1"}, {"example.com/gpu": "1"}, "BestEffort"), ({"cpu": "0"}, {}, "BestEffort"),
    ],
)  # fmt: skip
def test_qos(requests, limits, qos):
    body = pod()
    body["spec"]["containers"][0]["resources"] = {"requests": requests, "limits": limits}
    assert made("v1/pods", body)[1]["status"]["qosClass"] == qos


def test_graceful_deletion_of_pods():
    rules, obj = made("v1/pods", pod(terminationGracePeriodSeconds=45))
    assert rules.grace_seconds(obj, None) == 0  # it is on no node
    obj["spec"]["nodeName"] = "n"
    assert rules.grace_seconds(obj, None) == 45
    assert rules.grace_seconds(obj, 5) == 5
    assert rules.grace_seconds(obj, 0) == 0
    obj["status"]["phase"] = "Succeeded"
    assert rules.grace_seconds(obj, None) == 0
    assert kinds.of("", "ConfigMap").grace_seconds({}, None) is None


def test_pod_updates():
    rules, old = made("v1/pods", pod(tolerations=[{"key": "k", "operator": "Exists"}]))

    def errors(**changes):
        obj = copy.deepcopy(old)
        obj["spec"].update(changes)
        rules.prepare_update(obj, old)
        return [e.field for e in rules.validate_update(obj, old)]

    assert errors(containers=[{**old["spec"]["containers"][0], "image": "j"}]) == []
    assert errors(activeDeadlineSeconds=5) == []
    assert errors(tolerations=[*old["spec"]["tolerations"], {"key": "l", "operator": "Exists"}]) == []
    assert errors(tolerations=[]) == ["spec.tolerations"]
    assert errors(nodeName="other") == ["spec"]
    assert errors(containers=[]) == ["spec.containers", "spec.containers"]


def test_scheduling_gates_go_but_do_not_come():
    rules, old = made("v1/pods", pod(schedulingGates=[{"name": "g"}, {"name": "h"}]))
    assert old["status"]["conditions"][0]["reason"] == "SchedulingGated"
    obj = copy.deepcopy(old)
    obj["spec"]["schedulingGates"] = [{"name": "g"}]
    obj["spec"]["nodeSelector"] = {"a": "b"}
    assert not rules.validate_update(obj, old)
    obj["spec"]["schedulingGates"] = [{"name": "new"}]
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec.schedulingGates[0].name"]


def test_terminated_containers_stay_so():
    rules, old = made("v1/pods", pod(restartPolicy="Never"))
    old["status"] = {"phase": "Running", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}
    obj = copy.deepcopy(old)
    obj["status"]["containerStatuses"][0]["state"] = {"running": {}}
    assert [e.field for e in rules.validate_status(obj, old)] == ["status.containerStatuses[0].state"]


def test_pod_ips():
    rules, obj = made("v1/pods", pod())
    obj["status"]["podIP"] = "10.0.0.1"
    rules.default(obj)
    assert obj["status"]["podIPs"] == [{"ip": "10.0.0.1"}]


def test_limits_become_requests():
    body = pod()
    body["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
    assert made("v1/pods", body)[1]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1"}


@pytest.mark.parametrize(
    "image, policy",
    [
        ("nginx", "Always"), ("nginx:latest", "Always"), ("nginx:1.25", "IfNotPresent"), ("localhost:5000/nginx", "Always"), ("localhost:5000/a/nginx:1", "IfNotPresent"),
        ("nginx@sha256:" + "0" * 64, "IfNotPresent"), ("nginx:latest@sha256:" + "0" * 64, "Always"), ("Bad Name", "IfNotPresent"), ("example.com/UPPER", "IfNotPresent"),
    ],
)  # fmt: skip
def test_pull_policy(image, policy):
    body = pod()
    body["spec"]["containers"][0]["image"] = image
    assert made("v1/pods", body)[1]["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_immutable_config():
    rules, old = made("v1/configmaps", {"metadata": {"name": "c"}, "data": {"a": "1"}, "immutable": True})
    obj = copy.deepcopy(old)
    obj["data"] = {"a": "2"}
    del obj["immutable"]
    assert [e.field for e in rules.validate_update(obj, old)] == ["immutable", "data"]


def test_secret_takes_plain_strings():
    _, obj = made("v1/secrets", {"metadata": {"name": "s"}, "data": {"a": "YQ=="}, "stringData": {"b": "b"}})
    assert obj["data"] == {"a": "YQ==", "b": "Yg=="} and "stringData" not in obj and obj["type"] == "Opaque"


def service(**spec):
    return {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}, **spec}}


def test_service_keeps_what_was_allocated():
    rules, old = made("v1/services", service(type="NodePort"))
    old["spec"].update(clusterIP="10.96.0.7", clusterIPs=["10.96.0.7"])
    old["spec"]["ports"][0]["nodePort"] = 30001
    obj, _ = codec.read(json.dumps(service(type="NodePort")).encode(), "application/json", "", "v1", "Service")
    rules.default(obj)
    obj["metadata"].update(old["metadata"])
    rules.prepare_update(obj, old)
    assert obj["spec"] == old["spec"]
    obj["spec"]["clusterIP"], obj["spec"]["clusterIPs"] = "10.96.0.8", ["10.96.0.8"]
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec.clusterIPs[0]"]


def test_service_that_becomes_an_external_name_gives_its_address_back():
    rules, old = made("v1/services", service())
    old["spec"].update(clusterIP="10.96.0.7", clusterIPs=["10.96.0.7"])
    obj = copy.deepcopy(old)
    obj["spec"].update(type="ExternalName", externalName="example.com")
    rules.prepare_update(obj, old)
    assert "clusterIP" not in obj["spec"] and "clusterIPs" not in obj["spec"] and "ipFamilies" not in obj["spec"]
    assert not rules.validate_update(obj, old)


def test_claim_grows_when_bound_only():
    rules, old = made(
        "v1/persistentvolumeclaims", {"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    )
    obj = copy.deepcopy(old)
    obj["spec"]["resources"]["requests"]["storage"] = "2Gi"
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec"]
    for o in (old, obj):
        o["status"] = {"phase": "Bound"}
    assert rules.validate_update(obj, old) == []
    obj["spec"]["resources"]["requests"]["storage"] = "512Mi"
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec.resources.requests.storage"]


def test_statefulset_names_what_may_change():
    rules, old = made(
        "apps/v1/statefulsets", {"metadata": {"name": "s"}, "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}}, "template": template(a="b")}}
    )
    obj = copy.deepcopy(old)
    obj["spec"]["replicas"] = 4
    assert not rules.validate_update(obj, old)
    obj["spec"]["serviceName"] = "t"
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec"]


def test_suspended_job_may_still_be_placed():
    body = {"metadata": {"name": "j"}, "spec": {"suspend": True, "template": {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}}
    rules, old = made("batch/v1/jobs", body)
    obj = copy.deepcopy(old)
    obj["spec"]["template"]["spec"]["nodeSelector"] = {"a": "b"}
    assert not rules.validate_update(obj, old)
    obj["spec"]["template"]["spec"]["containers"][0]["image"] = "j"
    assert [e.field for e in rules.validate_update(obj, old)] == ["spec.template"]


def test_autoscaler_versions():
    v1 = resources.parse("autoscaling/v1/horizontalpodautoscalers")
    body = {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h"},
        "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70},
    }
    stored = convert.to_storage(v1, copy.deepcopy(body))
    assert stored["apiVersion"] == "autoscaling/v2" and stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    stored["spec"]["metrics"].append({"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}})
    stored["spec"]["behavior"] = {"scaleUp": {"stabilizationWindowSeconds": 3}}
    served = convert.from_storage(v1, copy.deepcopy(stored))
    assert served["spec"] == body["spec"] and convert.METRICS in served["metadata"]["annotations"]
    back = convert.to_storage(v1, served)
    assert sorted(m["resource"]["name"] for m in back["spec"]["metrics"]) == ["cpu", "memory"] and back["spec"]["behavior"] == stored["spec"]["behavior"]


def test_event_versions():
    new = resources.parse("events.k8s.io/v1/events")
    served = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "note": "n",
        "regarding": {"name": "p"},
        "reportingController": "c",
        "reportingInstance": "i",
    }
    stored = convert.to_storage(new, copy.deepcopy(served))
    assert stored["message"] == "n" and stored["involvedObject"] == {"name": "p"} and stored["apiVersion"] == "v1"
    assert {k: v for k, v in convert.from_storage(new, stored).items() if k in served} == served


@pytest.mark.parametrize(
    "path, body",
    [
        ("apps/v1/deployments", deployment(replicas=3)),
        ("v1/replicationcontrollers", {"metadata": {"name": "r"}, "spec": {"replicas": 3, "template": template(a="b")}}),
    ],
)
def test_scale(path, body):
    _, obj = made(path, body)
    obj["status"]["replicas"] = 2
    scale = convert.scale_of(obj)
    assert scale["kind"] == "Scale" and scale["spec"] == {"replicas": 3} and scale["status"] == {"replicas": 2, "selector": "a=b"}
    scale["spec"]["replicas"] = 7
    assert convert.apply_scale(obj, scale)["spec"]["replicas"] == 7 and obj["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    "text, minutes, hours",
    [
        ("* * * * *", 60, 24),
        ("*/15 0-6/2 * * *", 4, 4),
        ("0,30 9-17 * * mon-fri", 2, 9),
        ("@hourly", 1, 24),
        ("5/20 * 1 jan,jul ?", 3, 24),
        ("TZ=Etc/UTC 0 0 * * *", 1, 1),
    ],
)
def test_cron(text, minutes, hours):
    schedule = cron.parse(text)
    assert (len(schedule.minutes), len(schedule.hours)) == (minutes, hours)


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "* * * * 7", "*/0 * * * *", "a * * * *", "5-1 * * * *", "1-2-3 * * * *", "@never", "@every x", "1/2/3 * * * *", "-1 * * * *"],
)
def test_cron_refused(text):
    assert cron.explain(text)


def test_a_nodes_pod_range_cannot_be_changed_through_the_single_field():
    rules = kinds.of("", "Node")
    old = {"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}}
    new = {"metadata": {"name": "n"}, "spec": {"podCIDR": "1.2.3.0/24", "podCIDRs": ["10.0.0.0/24"]}}
    rules.default(old)
    rules.default(new)
    assert new["spec"]["podCIDRs"] == ["1.2.3.0/24"]
    assert [e.field for e in rules.validate_update(new, old)] == ["spec.podCIDRs"]


def test_a_pattern_that_is_no_expression_is_said_beside_a_default():
    rules = kinds.of("apiextensions.k8s.io", "CustomResourceDefinition")
    schema = {"type": "object", "properties": {"s": {"type": "string", "pattern": "([", "default": "x"}}}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "as.x.io"},
        "spec": {
            "group": "x.io", "scope": "Namespaced", "names": {"plural": "as", "kind": "A"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip
    rules.default(crd)
    rules.prepare_create(crd)
    assert any("must be a valid regular expression" in e.message for e in rules.validate_create(crd))
