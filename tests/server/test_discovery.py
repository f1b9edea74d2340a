"""Discovery: what upstream's aggregated document says of the GA groups, the old form, custom groups, ETags."""

import json
import re
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from fastkube.api import resources
from fastkube.api.resources import Resource, Subresource
from fastkube.server import discovery
from fastkube.server.discovery import Discovery

REFERENCE = Path(__file__).parents[2] / "../shared/reference/discovery-aggregated.json"
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
KUBECTL = f"{V2},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
CRON = Resource("example.com", "v1", "crontabs", "crontab", "CronTab", True, ("ct",), ("all",), ("create", "get", "list"),
                {"status": Subresource("status", ("get", "patch", "update"), "example.com", "v1", "CronTab"), "scale": Subresource("scale", ("get",), "autoscaling", "v1", "Scale")},
                "example.com/v1", "/registry/example.com/crontabs/", True)  # fmt: skip


def ask(path, accept="", **more):
    return Discovery(resources.builtin, "10.0.0.1:6443").answer(path, accept, **more)


def body(path, accept="", **more):
    return orjson.loads(ask(path, accept, **more).body)


@pytest.mark.skipif(not REFERENCE.exists(), reason="no reference data beside the checkout")
def test_aggregated_is_upstreams_for_the_ga_groups():
    want = json.loads(REFERENCE.read_text())
    items = []
    for g in want["items"]:
        g["versions"] = [v for v in g["versions"] if re.fullmatch(r"v\d+", v["version"])]
        if g["versions"]:
            items.append(g)
    got = body("/apis", KUBECTL)
    assert got["items"] == items
    assert (got["kind"], got["apiVersion"]) == (want["kind"], want["apiVersion"])


def test_every_document_lists_every_resource():
    for r in resources.builtin():
        listed = {item["name"]: item for item in body(r.base_path)["resources"]}
        assert listed[r.plural]["kind"] == r.kind and listed[r.plural]["verbs"] == list(r.verbs)
        assert all(f"{r.plural}/{s}" in listed for s in r.subresources)
    pods = next(item for item in body("/api/v1")["resources"] if item["name"] == "pods")
    assert pods == {
        "name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": pods["verbs"], "shortNames": ["po"], "categories": ["all"], "storageVersionHash": "xPOwRZ+Yhw8=",
    }  # fmt: skip
    names = [item["name"] for item in body("/apis/apps/v1")["resources"]]
    assert names == sorted(names) and "deployments/scale" in names


def test_roots():
    assert body("/api") == {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "10.0.0.1:6443"}],
    }
    groups = {g["name"]: g for g in body("/apis")["groups"]}
    assert "" not in groups
    assert groups["autoscaling"] == {
        "name": "autoscaling", "preferredVersion": {"groupVersion": "autoscaling/v2", "version": "v2"},
        "versions": [{"groupVersion": "autoscaling/v2", "version": "v2"}, {"groupVersion": "autoscaling/v1", "version": "v1"}],
    }  # fmt: skip
    assert body("/apis/apps") == {"kind": "APIGroup", "apiVersion": "v1", **groups["apps"]}


@pytest.mark.parametrize("path", ["/api/v2", "/apis/nope", "/apis/apps/v2", "/apis/", "/apis//v1", "/apis/apps/v1/deployments", "/other"])
def test_what_is_not_served_is_not_found(path):
    assert ask(path.rstrip("/") if path != "/apis/" else "/apis/x/y/z") is None


def test_custom_groups_come_after_and_go_with_their_resources():
    served = list(resources.builtin())
    of = Discovery(lambda: served)
    before = of.answer("/apis", KUBECTL)
    served += [CRON, replace(CRON, version="v1beta1"), replace(CRON, group="a.example.com")]
    assert of.answer("/apis", KUBECTL) is before
    of.changed()
    after = orjson.loads(of.answer("/apis", KUBECTL).body)
    assert [g["metadata"]["name"] for g in after["items"][-2:]] == ["a.example.com", "example.com"]
    assert [v["version"] for v in after["items"][-1]["versions"]] == ["v1", "v1beta1"]
    assert after["items"][-1]["versions"][0]["resources"] == [
        {"resource": "crontabs", "responseKind": {"group": "", "version": "", "kind": "CronTab"}, "scope": "Namespaced", "singularResource": "crontab", "verbs": ["create", "get", "list"],
         "shortNames": ["ct"], "categories": ["all"], "subresources": [
             {"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}, "verbs": ["get"]},
             {"subresource": "status", "responseKind": {"group": "", "version": "", "kind": "CronTab"}, "verbs": ["get", "patch", "update"]}]},
    ]  # fmt: skip
    served[:] = [r for r in served if not r.custom]
    of.changed()
    assert of.answer("/apis", KUBECTL).body == before.body


def test_etag_saves_the_answer():
    first = ask("/apis", KUBECTL)
    etag = dict(first.headers)["ETag"]
    assert first.content_type == V2
    again = ask("/apis", KUBECTL, if_none_match=etag)
    assert (again.status, again.body, dict(again.headers)["ETag"]) == (304, b"", etag)
    assert ask("/apis", KUBECTL, if_none_match='"other"').status == 200


@pytest.mark.parametrize(
    "accept, want",
    [("", ""), ("application/json", ""), ("*/*", ""), (KUBECTL, "v2"), (f"application/json,{V2}", ""), ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", "v2beta1"),
     ("application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList, application/json", ""), (";;=,", ""), ("application/yaml", "")],
)  # fmt: skip
def test_accept(accept, want):
    assert discovery.accepts_aggregated(accept) == want


def test_versions_are_ordered_as_kubernetes_orders_them():
    want = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
    assert sorted(reversed(want), key=discovery.version_order) == want
