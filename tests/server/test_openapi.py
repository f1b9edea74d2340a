"""OpenAPI: documents that are whole (every reference resolves), protobuf that Google's runtime reads back, hashes, custom resources spliced in."""

import gzip
import json
import re

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fastkube.api import gnostic, openapi, resources
from fastkube.server.openapi import PROTOBUF, OpenApi

PART = {
    "paths": {"/apis/example.com/v1/crontabs": {"get": {"operationId": "list", "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/com.example.v1.CronTab"}}}, "x-kubernetes-action": "list"}}},
    "definitions": {"com.example.v1.CronTab": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}, "x-kubernetes-group-version-kind": [{"group": "example.com", "version": "v1", "kind": "CronTab"}]}},
}  # fmt: skip


async def get(path, of=None, **more):
    answer = await (of or OpenApi()).answer(path, accept_encoding="gzip", **more)
    return answer


def decoded(answer):
    return json.loads(gzip.decompress(answer.body))


async def test_v3_index_and_every_document():
    of = OpenApi()
    index = decoded(await get("/openapi/v3", of))["paths"]
    assert {f"apis/{r.group}/{r.version}" if r.group else f"api/{r.version}" for r in resources.builtin()} <= index.keys()
    for key, where in index.items():
        path, _, hash_ = where["serverRelativeURL"].partition("?hash=")
        assert path == f"/openapi/v3/{key}"
        answer = await get(path, of, hash=hash_)
        assert answer.status == 200 and ("Cache-Control", "public, immutable") in answer.headers
        document = decoded(answer)
        text = gzip.decompress(answer.body).decode()
        assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= document["components"]["schemas"].keys(), key
        assert "#/definitions/" not in text and "#/parameters/" not in text


async def test_v3_says_kinds_and_parameters_of_operations():
    document = decoded(await get("/openapi/v3/apis/apps/v1"))
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "kind": "Deployment", "version": "v1"}
    assert {"dryRun", "fieldValidation", "fieldManager", "force"} <= {p["name"] for p in patch["parameters"]}
    assert patch["requestBody"]["content"]["application/apply-patch+yaml"]["schema"]
    spec = document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"]
    assert spec["allOf"] == [{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}] and spec["description"]


async def test_v2_is_whole_and_only_ga():
    document = decoded(await get("/openapi/v2"))
    text = json.dumps(document)
    assert set(re.findall(r'"#/definitions/([^"]+)"', text)) <= document["definitions"].keys()
    assert not [p for p in document["paths"] if "beta" in p or "alpha" in p]
    assert len(document["paths"]) > 400


async def test_wrong_hash_is_sent_to_the_right_one_and_etag_saves_the_answer():
    answer = await get("/openapi/v3/api/v1", hash="old")
    assert answer.status == 301
    location = dict(answer.headers)["Location"]
    right = await get("/openapi/v3/api/v1", hash=location.partition("=")[2])
    assert right.status == 200
    assert (await get("/openapi/v3/api/v1", if_none_match=dict(right.headers)["ETag"])).status == 304


@pytest.mark.parametrize("path", ["/openapi/v3/apis/none/v1", "/openapi/v3/../../etc/passwd", "/openapi", "/openapi/v4", "/openapi/v3/"])
async def test_unknown_documents(path):
    assert await get(path) is None


@pytest.mark.parametrize(
    "accept, want",
    [("", "application/json"), ("*/*", "application/json"), ("application/json, */*", "application/json"), ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF),
     (PROTOBUF, PROTOBUF), ("text/html", "")],
)  # fmt: skip
async def test_v2_negotiation(accept, want):
    answer = await get("/openapi/v2", accept=accept)
    assert (answer.status, answer.content_type) == ((200, want) if want else (406, "application/json"))


async def test_without_gzip_it_is_plain():
    answer = await OpenApi().answer("/openapi/v2")
    assert json.loads(answer.body)["swagger"] == "2.0" and "Content-Encoding" not in dict(answer.headers)


async def test_custom_resources_come_and_go():
    of = OpenApi()
    before = decoded(await get("/openapi/v2", of))
    proto = gzip.decompress((await get("/openapi/v2", of, accept=PROTOBUF)).body)
    of.custom("apis/example.com/v1", PART)
    after = decoded(await get("/openapi/v2", of))
    assert after["definitions"] == {**before["definitions"], **PART["definitions"]}
    assert after["paths"] == {**before["paths"], **PART["paths"]}
    assert gzip.decompress((await get("/openapi/v2", of, accept=PROTOBUF)).body) == proto + gnostic.document(PART)
    assert "apis/example.com/v1" in decoded(await get("/openapi/v3", of))["paths"]
    assert decoded(await get("/openapi/v3/apis/example.com/v1", of))["components"]["schemas"].keys() == PART["definitions"].keys()
    of.custom("apis/example.com/v1", None)
    assert decoded(await get("/openapi/v2", of)) == before
    assert await get("/openapi/v3/apis/example.com/v1", of) is None


def test_references_with_words_become_all_of():
    assert openapi.schema_v3({"$ref": "#/definitions/X"}) == {"$ref": "#/components/schemas/X"}
    got = openapi.schema_v3(
        {"type": "object", "properties": {"a": {"$ref": "#/definitions/X", "description": "d"}}, "additionalProperties": {"items": {"$ref": "#/definitions/Y"}}}
    )
    assert got == {
        "type": "object",
        "properties": {"a": {"allOf": [{"$ref": "#/components/schemas/X"}], "description": "d"}},
        "additionalProperties": {"items": {"$ref": "#/components/schemas/Y"}},
    }


# The part of OpenAPIv2.proto that kubectl reads: message -> {field: (number, type)}; "+" is repeated.
PROTO = {
    "Any": {"yaml": (2, "string")}, "NamedAny": {"name": (1, "string"), "value": (2, "Any")}, "TypeItem": {"value": (1, "+string")}, "ItemsItem": {"schema": (1, "+Schema")},
    "AdditionalPropertiesItem": {"schema": (1, "Schema"), "boolean": (2, "bool")}, "Properties": {"additional_properties": (1, "+NamedSchema")},
    "NamedSchema": {"name": (1, "string"), "value": (2, "Schema")}, "Definitions": {"additional_properties": (1, "+NamedSchema")},
    "Schema": {"_ref": (1, "string"), "format": (2, "string"), "description": (4, "string"), "required": (19, "+string"), "additional_properties": (21, "AdditionalPropertiesItem"), "type": (22, "TypeItem"),
               "items": (23, "ItemsItem"), "properties": (25, "Properties"), "vendor_extension": (31, "+NamedAny")},
    "QueryParameterSubSchema": {"required": (1, "bool"), "in": (2, "string"), "description": (3, "string"), "name": (4, "string"), "allow_empty_value": (5, "bool"), "type": (6, "string"), "format": (7, "string"), "unique_items": (20, "bool")},
    "PathParameterSubSchema": {"required": (1, "bool"), "in": (2, "string"), "description": (3, "string"), "name": (4, "string"), "type": (5, "string"), "format": (6, "string"), "unique_items": (19, "bool")},
    "NonBodyParameter": {"query_parameter_sub_schema": (3, "QueryParameterSubSchema"), "path_parameter_sub_schema": (4, "PathParameterSubSchema")},
    "BodyParameter": {"name": (2, "string"), "in": (3, "string"), "required": (4, "bool"), "schema": (5, "Schema")}, "Parameter": {"body_parameter": (1, "BodyParameter"), "non_body_parameter": (2, "NonBodyParameter")},
    "JsonReference": {"_ref": (1, "string")}, "ParametersItem": {"parameter": (1, "Parameter"), "json_reference": (2, "JsonReference")},
    "SchemaItem": {"schema": (1, "Schema")}, "Response": {"description": (1, "string"), "schema": (2, "SchemaItem")}, "ResponseValue": {"response": (1, "Response")},
    "NamedResponseValue": {"name": (1, "string"), "value": (2, "ResponseValue")}, "Responses": {"response_code": (1, "+NamedResponseValue")},
    "Operation": {"tags": (1, "+string"), "description": (3, "string"), "operation_id": (5, "string"), "produces": (6, "+string"), "consumes": (7, "+string"), "parameters": (8, "+ParametersItem"), "responses": (9, "Responses"),
                  "schemes": (10, "+string"), "vendor_extension": (13, "+NamedAny")},
    "PathItem": {"get": (2, "Operation"), "put": (3, "Operation"), "post": (4, "Operation"), "delete": (5, "Operation"), "options": (6, "Operation"), "head": (7, "Operation"), "patch": (8, "Operation"), "parameters": (9, "+ParametersItem")},
    "NamedPathItem": {"name": (1, "string"), "value": (2, "PathItem")}, "Paths": {"path": (2, "+NamedPathItem")}, "NamedParameter": {"name": (1, "string"), "value": (2, "Parameter")},
    "ParameterDefinitions": {"additional_properties": (1, "+NamedParameter")}, "Info": {"title": (1, "string"), "version": (2, "string")}, "StringArray": {"value": (1, "+string")},
    "NamedStringArray": {"name": (1, "string"), "value": (2, "StringArray")}, "SecurityRequirement": {"additional_properties": (1, "+NamedStringArray")},
    "ApiKeySecurity": {"type": (1, "string"), "name": (2, "string"), "in": (3, "string"), "description": (4, "string")}, "SecurityDefinitionsItem": {"api_key_security": (2, "ApiKeySecurity")},
    "NamedSecurityDefinitionsItem": {"name": (1, "string"), "value": (2, "SecurityDefinitionsItem")}, "SecurityDefinitions": {"additional_properties": (1, "+NamedSecurityDefinitionsItem")},
    "Document": {"swagger": (1, "string"), "info": (2, "Info"), "paths": (8, "Paths"), "definitions": (9, "Definitions"), "parameters": (10, "ParameterDefinitions"), "security": (12, "+SecurityRequirement"), "security_definitions": (13, "SecurityDefinitions")},
}  # fmt: skip


def proto_document():
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    types = {"string": 9, "bool": 8}
    for message, fields in PROTO.items():
        m = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            bare = kind.removeprefix("+")
            m.field.add(
                name=name,
                number=number,
                label=3 if kind.startswith("+") else 1,
                type=types.get(bare, 11),
                **({} if bare in types else {"type_name": f".t.{bare}"}),
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Document"))()


async def test_protobuf_reads_back_as_the_json_document():
    document = proto_document()
    document.ParseFromString(gzip.decompress((await get("/openapi/v2", accept=PROTOBUF)).body))
    want = decoded(await get("/openapi/v2"))
    assert (document.swagger, document.info.title) == ("2.0", "Kubernetes")
    assert [d.name for d in document.definitions.additional_properties] == list(want["definitions"])
    for d in document.definitions.additional_properties:
        assert as_json(d.value) == plain(want["definitions"][d.name]), d.name
    paths = {p.name: p.value for p in document.paths.path}
    assert paths.keys() == want["paths"].keys()
    for name, item in want["paths"].items():
        for method in openapi._METHODS:
            if method in item:
                operation = getattr(paths[name], method)
                assert operation.operation_id == item[method]["operationId"]
                assert [named(p) for p in operation.parameters] == [p.get("name") or p["$ref"] for p in item[method].get("parameters", [])]
                assert {r.name for r in operation.responses.response_code} == item[method]["responses"].keys()
    assert {p.name for p in document.parameters.additional_properties} == want["parameters"].keys()
    assert document.security_definitions.additional_properties[0].value.api_key_security.name == "authorization"


def named(item):
    if item.HasField("json_reference"):
        return item.json_reference._ref
    p = item.parameter
    if p.HasField("body_parameter"):
        return p.body_parameter.name
    return p.non_body_parameter.query_parameter_sub_schema.name or p.non_body_parameter.path_parameter_sub_schema.name


def as_json(s):
    out = {}
    for field, key in (("_ref", "$ref"), ("format", "format"), ("description", "description")):
        if getattr(s, field):
            out[key] = getattr(s, field)
    if s.type.value:
        out["type"] = s.type.value[0]
    if s.required:
        out["required"] = list(s.required)
    if s.HasField("items"):
        out["items"] = as_json(s.items.schema[0])
    if s.HasField("additional_properties"):
        out["additionalProperties"] = as_json(s.additional_properties.schema)
    if s.properties.additional_properties:
        out["properties"] = {p.name: as_json(p.value) for p in s.properties.additional_properties}
    return out | {e.name: json.loads(e.value.yaml) for e in s.vendor_extension}


def plain(of):
    """What the protobuf form cannot tell from nothing: empty texts."""
    out = {k: v for k, v in of.items() if v != ""}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = plain(out[key])
    if "properties" in out:
        out["properties"] = {k: plain(v) for k, v in out["properties"].items()}
    return out
