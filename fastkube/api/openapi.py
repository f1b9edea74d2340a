"""OpenAPI documents as data: which part of a v2 document belongs to a group version, and how v2 is said in v3.

What kubectl needs of them: definitions with x-kubernetes-group-version-kind (validation, explain) and paths whose operations carry the same
extension and their query parameters (`--dry-run`, fieldValidation, finding a resource's kind).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Json = Any

TITLE, VERSION = "Kubernetes", "v1.36.0"
_REF = "#/definitions/"
_REF_V3 = "#/components/schemas/"
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
SECURITY = {"BearerToken": {"description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"}}


def key(path: str) -> str:
    """Which v3 document a path belongs to: `apis/apps/v1`, `apis/apps`, `api/v1`, `version`."""
    parts = path.strip("/").split("/")
    if parts[0] == "apis":
        return "/".join(parts[:3])
    if parts[0] == "api":
        return "/".join(parts[:2])
    return parts[0] if parts[0] == "logs" else "/".join(parts)


def ga(swagger: Json) -> Json:
    """The part of a v2 document that a server of GA versions serves: its paths, and the definitions these reach."""
    groups = {key(path) for path in swagger["paths"] if re.fullmatch(r"apis/[^/]+/v\d+", key(path))}
    groups |= {g.rpartition("/")[0] for g in groups}

    def served(path: str) -> bool:
        of = key(path)
        return of in groups if of.startswith("apis/") else of != "logs"

    paths = {path: item for path, item in swagger["paths"].items() if served(path)}
    definitions = reached(swagger["definitions"], [paths, swagger.get("parameters") or {}])
    return {**swagger, "info": {"title": TITLE, "version": VERSION}, "paths": paths, "definitions": definitions}


def reached(definitions: Json, roots: Iterable[Json]) -> Json:
    """The definitions that `roots` refer to, directly or through others; in their own order."""
    found: set[str] = set()
    queue = [name for root in roots for name in references(root)]
    while queue:
        name = queue.pop()
        if name not in found and name in definitions:
            found.add(name)
            queue += references(definitions[name])
    return {name: of for name, of in definitions.items() if name in found}


def references(value: Json) -> set[str]:
    out: set[str] = set()
    _references(value, out)
    return out


def _references(value: Json, out: set[str]) -> None:
    if isinstance(value, dict):
        ref = value.get("$ref")
        if isinstance(ref, str):
            out.add(ref.rpartition("/")[2])
        for inner in value.values():
            _references(inner, out)
    elif isinstance(value, list):
        for inner in value:
            _references(inner, out)


def document_v3(paths: Json, definitions: Json, parameters: Json) -> Json:
    """The v3 document of some v2 paths; `definitions` and `parameters` are those of the whole v2 document."""
    needed = reached(definitions, [paths, [parameters[p] for p in references(paths) & parameters.keys()]])
    return {
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": {path: _path_v3(item, parameters) for path, item in paths.items()},
        "components": {"schemas": {name: schema_v3(of) for name, of in needed.items()}, "securitySchemes": SECURITY},
    }


def schema_v3(of: Json) -> Json:
    """A schema with v3's references; a reference with words beside it becomes allOf, as siblings of $ref mean nothing in v3."""
    if "$ref" in of:
        ref = {"$ref": of["$ref"].replace(_REF, _REF_V3)}
        rest = {k: v for k, v in of.items() if k != "$ref"}
        return {"allOf": [ref], **rest} if rest else ref
    out = dict(of)
    if "properties" in of:
        out["properties"] = {name: schema_v3(inner) for name, inner in of["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(of.get(name), dict):
            out[name] = schema_v3(of[name])
    return out


def _path_v3(item: Json, parameters: Json) -> Json:
    out: Json = {method: _operation_v3(item[method], parameters) for method in _METHODS if method in item}
    if given := _parameters_v3(item.get("parameters") or (), parameters):
        out["parameters"] = given
    return out


def _resolved(parameter: Json, parameters: Json) -> Json:
    return parameters[parameter["$ref"].rpartition("/")[2]] if "$ref" in parameter else parameter


def _parameters_v3(of: Iterable[Json], parameters: Json) -> list[Json]:
    out = []
    for parameter in of:
        p = _resolved(parameter, parameters)
        if p["in"] != "body":
            described = {k: p[k] for k in ("name", "in", "description", "required") if k in p}
            out.append({**described, "schema": {k: p[k] for k in ("type", "format", "uniqueItems") if k in p}})
    return out


def _operation_v3(of: Json, parameters: Json) -> Json:
    out: Json = {k: of[k] for k in ("tags", "description", "operationId", "deprecated") if k in of}
    if given := _parameters_v3(of.get("parameters") or (), parameters):
        out["parameters"] = given
    for parameter in of.get("parameters") or ():
        p = _resolved(parameter, parameters)
        if p["in"] == "body":
            content = {media: {"schema": schema_v3(p.get("schema") or {})} for media in of.get("consumes") or ["*/*"]}
            out["requestBody"] = {"content": content, **({"required": True} if p.get("required") else {})}
    out["responses"] = {code: _response_v3(response, of.get("produces") or ()) for code, response in (of.get("responses") or {}).items()}
    return out | {k: v for k, v in of.items() if k.startswith("x-")}


def _response_v3(of: Json, produces: Iterable[str]) -> Json:
    out: Json = {"description": of.get("description", "")}
    if "schema" in of:
        out["content"] = {media: {"schema": schema_v3(of["schema"])} for media in produces}
    return out
