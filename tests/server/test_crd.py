"""Custom resources through the whole server: from a definition to its objects and back, as kubectl and operators use them."""

import asyncio
import copy
import gzip
import re

import orjson
import pytest

from fastkube.http.message import Request, Response
from fastkube.runtime import clock
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.store.embedded import EmbeddedStore

TOKEN = "t0ken"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"

SPEC = {
    "type": "object", "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 10}, "mode": {"type": "string", "enum": ["a", "b", "c"], "default": "a"}, "opt": {"type": "string", "nullable": True},
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed is fixed"}]}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "ios": {"x-kubernetes-int-or-string": True}, "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3}},
        "ports": {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["p"],
                  "items": {"type": "object", "required": ["p"], "properties": {"p": {"type": "integer"}, "n": {"type": "string", "pattern": "^[a-z]+$", "default": "x"}}}},
    },
    "x-kubernetes-validations": [{"rule": "self.mode != 'c' || self.size == 1", "messageExpression": "'mode c wants ' + string(1)", "fieldPath": ".size", "reason": "FieldValueForbidden"}],
}  # fmt: skip


def definition(plural="things", group="o.example.com", **version):
    one = {
        "name": "v1", "served": True, "storage": True, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.sel"}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC, "status": {"type": "object", "properties": {"size": {"type": "integer"}, "sel": {"type": "string"}}}}}},
        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}], "selectableFields": [{"jsonPath": ".spec.mode"}], **version,
    }  # fmt: skip
    kind = plural[:-1].capitalize()
    names = {"plural": plural, "singular": plural[:-1], "kind": kind, "shortNames": [plural[:2]], "categories": ["all"]}
    spec = {"group": group, "names": names, "scope": "Namespaced", "versions": [one]}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural}.{group}"}, "spec": spec}


def thing(name="x", kind="Thing", **spec):
    return {"apiVersion": "o.example.com/v1", "kind": kind, "metadata": {"name": name}, "spec": {"size": 1, **spec}}


class Cluster:
    """A server in this process, asked as over HTTP."""

    def __init__(self, server):
        self.server = server

    async def ask(self, method, path, body=None, media="application/json", accept="application/json", **headers):
        raw = orjson.dumps(body) if body is not None else b""
        answer = self.server.handle(
            Request(method, path, {"authorization": f"Bearer {TOKEN}", "content-type": media, "accept": accept, "user-agent": "test/1", **headers}, raw)
        )
        if asyncio.iscoroutine(answer) or asyncio.isfuture(answer):
            answer = await answer
        assert isinstance(answer, Response)
        data = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body.pieces())
        if dict(answer.headers).get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.headers = answer.headers
        return answer.status, orjson.loads(data) if data and answer.content_type == "application/json" else data

    async def define(self, crd):
        code, answer = await self.ask("POST", CRDS, crd)
        assert code == 201, answer
        return answer

    async def established(self, crd):
        await self.define(crd)
        return await self.until(f"{CRDS}/{crd['metadata']['name']}", lambda c, a: (a.get("status") or {}).get("conditions"))

    async def until(self, path, holds):
        deadline = clock.monotonic() + 10
        while clock.monotonic() < deadline:
            code, answer = await self.ask("GET", path)
            if holds(code, answer):
                return answer
            await asyncio.sleep(0.01)
        raise AssertionError(f"{path}: {code} {answer}")


@pytest.fixture
async def cluster(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    server = ApiServer(Config(secure_port=0, token_auth_file=tokens, shutdown_grace_seconds=0.1), EmbeddedStore(None, fsync=False))
    await server.start()
    yield Cluster(server)
    await server.close()


THINGS = "/apis/o.example.com/v1/namespaces/default/things"


async def test_served_at_once_and_established(cluster):
    await cluster.define(definition())
    code, made = await cluster.ask("POST", THINGS, thing())
    assert code == 201, made
    assert made["spec"] == {"size": 1, "mode": "a"} and made["metadata"]["generation"] == 1
    assert made["metadata"]["managedFields"][0]["fieldsV1"] == {"f:spec": {".": {}, "f:mode": {}, "f:size": {}}}
    crd = await cluster.until(f"{CRDS}/things.o.example.com", lambda c, a: (a.get("status") or {}).get("conditions"))
    assert [(c["type"], c["status"], c["reason"]) for c in crd["status"]["conditions"]] == [
        ("NamesAccepted", "True", "NoConflicts"),
        ("Established", "True", "InitialNamesAccepted"),
    ]
    assert crd["status"]["acceptedNames"]["shortNames"] == ["th"] and crd["status"]["storedVersions"] == ["v1"]
    assert [(e["manager"], e["subresource"]) for e in crd["metadata"]["managedFields"] if "subresource" in e] == [("kube-apiserver", "status")]


async def test_in_discovery_and_openapi(cluster):
    await cluster.define(definition())
    _, groups = await cluster.ask("GET", "/apis")
    assert groups["groups"][-1]["name"] == "o.example.com"
    _, listed = await cluster.ask("GET", "/apis/o.example.com/v1")
    assert [r["name"] for r in listed["resources"]] == ["things", "things/scale", "things/status"]
    assert listed["resources"][0]["shortNames"] == ["th"] and "create" in listed["resources"][0]["verbs"]
    _, document = await cluster.ask("GET", "/openapi/v3/apis/o.example.com/v1")
    schema = document["components"]["schemas"]["com.example.o.v1.Thing"]
    assert schema["properties"]["spec"]["properties"]["size"]["type"] == "integer"
    text = orjson.dumps(document).decode()
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= document["components"]["schemas"].keys()
    assert schema["x-kubernetes-group-version-kind"] == [{"group": "o.example.com", "version": "v1", "kind": "Thing"}]
    _, whole = await cluster.ask("GET", "/openapi/v2")
    assert "com.example.o.v1.Thing" in whole["definitions"] and THINGS.replace("default", "{namespace}") in whole["paths"]


async def test_pruned_defaulted_and_unknown_fields_by_validation(cluster):
    await cluster.define(definition())
    body = thing(odd=1, free={"any": {"thing": [1]}}, ports=[{"p": 1, "z": 2}], mode=None)
    code, made = await cluster.ask("POST", f"{THINGS}?fieldValidation=Warn", body)
    assert code == 201 and made["spec"] == {"size": 1, "free": {"any": {"thing": [1]}}, "ports": [{"p": 1, "n": "x"}], "mode": "a"}
    warnings = [v for k, v in cluster.headers if k == "Warning"]
    assert warnings == ['299 - "unknown field \\"spec.odd\\""', '299 - "unknown field \\"spec.ports[0].z\\""']
    code, answer = await cluster.ask("POST", f"{THINGS}?fieldValidation=Strict", thing("y", odd=1))
    assert (code, answer["message"]) == (400, 'Thing in version "v1" cannot be handled as a Thing: strict decoding error: unknown field "spec.odd"')


@pytest.mark.parametrize(
    "spec, causes",
    [
        ({"size": 11}, [("spec.size", "FieldValueInvalid", "Invalid value: 11: spec.size in body should be less than or equal to 10")]),
        ({"size": "x"}, [("spec.size", "FieldValueTypeInvalid", 'Invalid value: "string": spec.size in body must be of type integer: "string"'), None]),
        ({"mode": "z"}, [("spec.mode", "FieldValueNotSupported", 'Unsupported value: "z": supported values: "a", "b", "c"')]),
        ({"ports": [{"p": 1, "n": "A"}]}, [("spec.ports[0].n", "FieldValueInvalid", "Invalid value: \"A\": spec.ports[0].n in body should match '^[a-z]+$'")]),
        ({"ports": [{"p": 1}, {"p": 1}]}, [("spec.ports[1]", "FieldValueDuplicate", 'Duplicate value: {"p":1}')]),
        ({"ports": [{"n": "a"}]}, [("spec.ports[0].p", "FieldValueRequired", "Required value"), None]),
        ({"ports": [{"p": i} for i in range(4)]}, [("spec.ports", "FieldValueTooMany", "Too many: 4: must have at most 3 items"), None]),
        ({"labels": {"k": "long"}}, [("spec.labels.k", "FieldValueTooLong", "Too long: may not be more than 3 bytes"), None]),
        ({"ios": True}, [("spec.ios", "FieldValueTypeInvalid", 'Invalid value: "boolean": spec.ios in body must be of type integer,string: "boolean"'), None]),
        ({"mode": "c", "size": 2}, [("spec.size", "FieldValueForbidden", "Forbidden: mode c wants 1")]),
    ],
)
async def test_values_are_validated_in_upstreams_words(cluster, spec, causes):
    await cluster.define(definition())
    code, answer = await cluster.ask("POST", THINGS, thing(**spec))
    unchecked = (
        "<nil>",
        "FieldValueInvalid",
        "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
    )
    assert code == 422
    assert [(c["field"], c["reason"], c["message"]) for c in answer["details"]["causes"]] == [c or unchecked for c in causes]


async def test_transition_rules_and_ratcheting(cluster):
    await cluster.established(definition())
    await cluster.ask("POST", THINGS, thing(fixed="a"))
    code, answer = await cluster.ask("PATCH", f"{THINGS}/x", {"spec": {"fixed": "b"}}, "application/merge-patch+json")
    assert (code, answer["details"]["causes"][0]["message"]) == (422, 'Invalid value: "string": fixed is fixed')
    code, crd = await cluster.ask("GET", f"{CRDS}/things.o.example.com")
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["minimum"] = 5
    code, answer = await cluster.ask("PUT", f"{CRDS}/things.o.example.com", crd)
    assert code == 200, answer
    code, answer = await cluster.ask("PATCH", f"{THINGS}/x", {"spec": {"mode": "b"}}, "application/merge-patch+json")
    assert code == 200, "what was wrong before and is untouched does not stand in the way"
    code, _ = await cluster.ask("PATCH", f"{THINGS}/x", {"spec": {"size": 2}}, "application/merge-patch+json")
    assert code == 422


async def test_status_scale_and_generation(cluster):
    await cluster.define(definition())
    await cluster.ask("POST", THINGS, {**thing(), "status": {"size": 9}})
    _, got = await cluster.ask("GET", f"{THINGS}/x")
    assert "status" not in got
    code, got = await cluster.ask("PATCH", f"{THINGS}/x/status", {"status": {"size": 4, "sel": "a=b"}, "spec": {"size": 9}}, "application/merge-patch+json")
    assert code == 200 and got["status"] == {"size": 4, "sel": "a=b"} and got["spec"]["size"] == 1 and got["metadata"]["generation"] == 1
    _, scale = await cluster.ask("GET", f"{THINGS}/x/scale")
    assert (scale["kind"], scale["spec"], scale["status"]) == ("Scale", {"replicas": 1}, {"replicas": 4, "selector": "a=b"})
    code, scale = await cluster.ask("PATCH", f"{THINGS}/x/scale", {"spec": {"replicas": 3}}, "application/merge-patch+json")
    assert code == 200 and scale["spec"] == {"replicas": 3}
    _, got = await cluster.ask("GET", f"{THINGS}/x")
    assert got["spec"]["size"] == 3 and got["metadata"]["generation"] == 2


async def test_tables_selectors_and_apply(cluster):
    await cluster.define(definition())
    for name, mode in (("x", "a"), ("y", "b")):
        await cluster.ask("POST", THINGS, thing(name, mode=mode))
    _, table = await cluster.ask("GET", THINGS, accept=TABLE)
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Size"] and [r["cells"] for r in table["rows"]] == [["x", 1], ["y", 1]]
    _, selected = await cluster.ask("GET", f"{THINGS}?fieldSelector=spec.mode%3Db")
    assert [i["metadata"]["name"] for i in selected["items"]] == ["y"]
    applied = thing("z", ports=[{"p": 1}])
    code, made = await cluster.ask("PATCH", f"{THINGS}/z?fieldManager=a", applied, "application/apply-patch+yaml")
    assert code == 201 and made["spec"]["ports"] == [{"p": 1, "n": "x"}]
    code, merged = await cluster.ask("PATCH", f"{THINGS}/z?fieldManager=b", {**thing("z"), "spec": {"ports": [{"p": 2}]}}, "application/apply-patch+yaml")
    assert code == 200 and [p["p"] for p in merged["spec"]["ports"]] == [1, 2]
    code, answer = await cluster.ask("PATCH", f"{THINGS}/z?fieldManager=b", {**thing("z"), "spec": {"size": 3}}, "application/apply-patch+yaml")
    assert (code, answer["message"]) == (409, 'Apply failed with 1 conflict: conflict with "a": .spec.size')
    code, _ = await cluster.ask("PATCH", f"{THINGS}/z", {"spec": {}}, "application/strategic-merge-patch+json")
    assert code == 415


async def test_versions_share_their_objects(cluster):
    crd = definition()
    second = {**copy.deepcopy(crd["spec"]["versions"][0]), "name": "v2", "storage": False}
    crd["spec"]["versions"].append(second)
    await cluster.define(crd)
    await cluster.ask("POST", THINGS, thing())
    code, got = await cluster.ask("GET", THINGS.replace("/v1/", "/v2/") + "/x")
    assert code == 200 and got["apiVersion"] == "o.example.com/v2" and got["spec"]["size"] == 1
    code, _ = await cluster.ask("PATCH", THINGS.replace("/v1/", "/v2/") + "/x", {"spec": {"size": 2}}, "application/merge-patch+json")
    _, got = await cluster.ask("GET", f"{THINGS}/x")
    assert code == 200 and got["apiVersion"] == "o.example.com/v1" and got["spec"]["size"] == 2
    _, listed = await cluster.ask("GET", THINGS.replace("/v1/", "/v2/"))
    assert [i["apiVersion"] for i in listed["items"]] == ["o.example.com/v2"]
    _, group = await cluster.ask("GET", "/apis/o.example.com")
    assert group["preferredVersion"]["version"] == "v2"


async def test_deletion_takes_the_objects_along(cluster):
    await cluster.define(definition())
    for i in range(5):
        await cluster.ask("POST", THINGS, thing(f"t{i}"))
    held = {**thing("held"), "metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    await cluster.ask("POST", THINGS, held)
    code, _ = await cluster.ask("DELETE", f"{CRDS}/things.o.example.com")
    assert code == 200
    crd = await cluster.until(f"{CRDS}/things.o.example.com", lambda c, a: c == 200 and a["metadata"].get("deletionTimestamp"))
    assert "customresourcecleanup.apiextensions.k8s.io" in crd["metadata"]["finalizers"]
    await cluster.until(THINGS, lambda c, a: c == 200 and [i["metadata"]["name"] for i in a["items"]] == ["held"])
    code, _ = await cluster.ask("POST", THINGS, thing("late"))
    assert code == 405, "none can be made while the definition goes"
    await cluster.ask("PATCH", f"{THINGS}/held", {"metadata": {"finalizers": None}}, "application/merge-patch+json")
    await cluster.until(f"{CRDS}/things.o.example.com", lambda c, a: c == 404)
    assert (await cluster.ask("GET", THINGS))[0] == 404
    assert (await cluster.ask("GET", "/apis/o.example.com"))[0] == 404
    await cluster.define(definition())
    assert (await cluster.ask("GET", THINGS))[1]["items"] == []


async def test_names_in_use_are_refused(cluster):
    await cluster.define(definition())
    await cluster.until(f"{CRDS}/things.o.example.com", lambda c, a: (a.get("status") or {}).get("conditions"))
    other = definition("others")
    other["spec"]["names"] |= {"kind": "Thing", "shortNames": ["th"]}
    await cluster.define(other)
    crd = await cluster.until(f"{CRDS}/others.o.example.com", lambda c, a: (a.get("status") or {}).get("conditions"))
    conditions = {c["type"]: c for c in crd["status"]["conditions"]}
    assert conditions["NamesAccepted"]["status"] == "False" and '"ThingList" is already in use' in conditions["NamesAccepted"]["message"]
    assert conditions["Established"]["status"] == "False"
    assert (await cluster.ask("GET", "/apis/o.example.com/v1/namespaces/default/others"))[0] == 404
    await cluster.ask("DELETE", f"{CRDS}/things.o.example.com")
    await cluster.until("/apis/o.example.com/v1/namespaces/default/others", lambda c, a: c == 200)


async def test_a_definition_that_changes_is_served_as_it_says_now(cluster):
    crd = await cluster.established(definition())
    await cluster.ask("POST", THINGS, thing("old"))
    crd["spec"]["versions"][0]["additionalPrinterColumns"] = []
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["new"] = {"type": "string", "default": "n"}
    assert (await cluster.ask("PUT", f"{CRDS}/things.o.example.com", crd))[0] == 200
    code, made = await cluster.ask("POST", THINGS, thing())
    assert code == 201 and made["spec"]["new"] == "n"
    _, stored_before = await cluster.ask("GET", f"{THINGS}/old")
    assert stored_before["spec"] == {"size": 1, "mode": "a", "new": "n"}, "defaults show in what was stored before"
    crd = (await cluster.ask("GET", f"{CRDS}/things.o.example.com"))[1]
    assert crd["metadata"]["generation"] == 2
    crd["spec"]["versions"][0]["served"] = False
    assert (await cluster.ask("PUT", f"{CRDS}/things.o.example.com", crd))[0] == 200
    assert (await cluster.ask("GET", THINGS))[0] == 404


async def test_what_was_defined_is_served_after_a_restart(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    config = Config(data_dir=tmp_path / "store", secure_port=0, token_auth_file=tokens, shutdown_grace_seconds=0.1)
    server = ApiServer(config, EmbeddedStore(config.data_dir))
    await server.start()
    cluster = Cluster(server)
    await cluster.define(definition())
    await cluster.ask("POST", THINGS, thing())
    await server.close()
    server = ApiServer(config, EmbeddedStore(config.data_dir))
    await server.start()
    assert (await Cluster(server).ask("GET", f"{THINGS}/x"))[1]["spec"]["size"] == 1
    await server.close()
