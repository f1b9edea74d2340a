"""Makes fastkube/api/data/ and fastkube/server/data/ from the reference data of a Kubernetes release (swagger.json, aggregated discovery, RBAC).

    python tools/gen_data.py ../shared/reference

Run by hand when the target release changes; its output is committed, so that neither a build nor the product needs the reference.
"""

import json
import lzma
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "fastkube/api/data"
SERVER = ROOT / "fastkube/server/data"

# The core group is not in the aggregated document of /apis: short names and categories of kubectl api-resources.
CORE_SHORT = {
    "componentstatuses": ["cs"], "configmaps": ["cm"], "endpoints": ["ep"], "events": ["ev"], "limitranges": ["limits"], "namespaces": ["ns"],
    "nodes": ["no"], "persistentvolumeclaims": ["pvc"], "persistentvolumes": ["pv"], "pods": ["po"], "replicationcontrollers": ["rc"],
    "resourcequotas": ["quota"], "serviceaccounts": ["sa"], "services": ["svc"],
}  # fmt: skip
CORE_ALL = {"pods", "replicationcontrollers", "services"}
ORDER = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def core(swagger: dict) -> list[dict]:
    found: dict[str, dict] = {}
    actions = {"post": "create", "put": "update", "list": "list", "get": "get", "patch": "patch", "delete": "delete", "deletecollection": "deletecollection"}
    for path, item in sorted(swagger["paths"].items()):
        m = re.fullmatch(r"/api/v1(/namespaces/\{namespace\})?/([a-z]+)(?:/\{name\}(?:/([a-z]+))?)?", path)
        if path in ("/api/v1/namespaces/{name}/status", "/api/v1/namespaces/{name}/finalize", "/api/v1/namespaces/{name}", "/api/v1/namespaces"):
            m = re.fullmatch(r"/api/v1()/(namespaces)(?:/\{name\}(?:/([a-z]+))?)?", path)
        if not m:
            continue
        namespaced, plural, sub = m.groups()
        for method, op in item.items():
            if method == "parameters" or "x-kubernetes-group-version-kind" not in op:
                continue
            action = op.get("x-kubernetes-action", "")
            gvk = op["x-kubernetes-group-version-kind"]
            r = found.setdefault(plural, {"resource": plural, "scope": "Cluster", "verbs": set(), "subs": {}})
            if namespaced:
                r["scope"] = "Namespaced"
            if sub:
                s = r["subs"].setdefault(sub, {"subresource": sub, "responseKind": gvk, "verbs": set()})
                s["verbs"].add("create" if action == "connect" and method == "post" else "get" if action == "connect" else actions.get(action, action))
            else:
                r["verbs"].add(actions.get(action, action))
                r["kind"] = gvk
    out = []
    for plural, r in found.items():
        if "kind" not in r:
            continue
        verbs = r["verbs"] | ({"watch"} if "list" in r["verbs"] and plural != "componentstatuses" else set())
        out.append({
            "resource": plural, "scope": r["scope"], "responseKind": r["kind"], "singularResource": r["kind"]["kind"].lower(),
            "shortNames": CORE_SHORT.get(plural, []), "categories": ["all"] if plural in CORE_ALL else [],
            "verbs": [v for v in ORDER if v in verbs],
            "subresources": [{**s, "verbs": [v for v in ORDER if v in s["verbs"]]} for s in r["subs"].values()],
        })  # fmt: skip
    return out


def resources(swagger: dict, discovery: dict) -> list[dict]:
    """One flat row per GA resource: what `api.resources` loads."""
    groups = [("", "v1", core(swagger))] + [
        (g["metadata"]["name"], v["version"], v["resources"]) for g in discovery["items"] for v in g["versions"] if re.fullmatch(r"v\d+", v["version"])
    ]
    rows = []
    for group, version, items in groups:
        for r in items:
            rows.append({
                "group": group, "version": version, "plural": r["resource"], "singular": r["singularResource"], "kind": r["responseKind"]["kind"],
                "namespaced": r["scope"] == "Namespaced", "short_names": r.get("shortNames", []), "categories": r.get("categories", []), "verbs": r["verbs"],
                "subresources": {
                    s["subresource"]: {"verbs": s["verbs"], **{k: v for k, v in s["responseKind"].items() if v and (k, v) not in (("group", group), ("version", version))}}
                    for s in r.get("subresources", [])
                },
            })  # fmt: skip
    return rows


PREFIXES = ("io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s.apiextensions-apiserver.pkg.apis.", "io.k8s.kube-aggregator.pkg.apis.")
SPECIAL = {  # definitions that decode themselves
    "io.k8s.apimachinery.pkg.api.resource.Quantity": ("quantity", "resource.Quantity"),
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": ("time", "v1.Time"),
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": ("microtime", "v1.MicroTime"),
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": ("intstr", "intstr.IntOrString"),
    "io.k8s.apimachinery.pkg.runtime.RawExtension": ("any", "runtime.RawExtension"),
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": ("any", "v1.FieldsV1"),
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": ("any", "v1.JSON"),
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": ("schemaor", "v1.JSONSchemaPropsOrArray"),
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": ("schemaor", "v1.JSONSchemaPropsOrBool"),
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": ("schemaor", "v1.JSONSchemaPropsOrStringArray"),
}
SCALARS = {
    ("integer", "int32"): "int32",
    ("integer", "int64"): "int64",
    ("boolean", ""): "bool",
    ("string", ""): "string",
    ("string", "byte"): "bytes",
    ("number", "double"): "double",
}
# Types no resource reaches, yet the API speaks them.
MORE = [
    "meta.v1.DeleteOptions",
    "meta.v1.Status",
    "meta.v1.ObjectMeta",
    "core.v1.ObjectReference",
    "authentication.v1.TokenRequest",
    "policy.v1.Eviction",
    "autoscaling.v1.Scale",
]


def short(name: str) -> str:
    return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)


def schema(swagger: dict, rows: list[dict], go: dict) -> dict:
    """Definition tables for `api.schema`: per field what OpenAPI says about type and merging and what only the Go type says (tools/gotypes.json).

    Field: t type, r definition, i items, v map values, g Go type where it is not plain from t, p pointer, z written even when empty, e name of
    the embedded structs it lies in, mk/ps/lt/mt/lk merge key, patch strategy, list type, map type, list map keys.
    """
    definitions = {short(k): v for k, v in swagger["definitions"].items()}
    kinds = {(g["group"], g["version"], g["kind"]): name for name, d in definitions.items() for g in d.get("x-kubernetes-group-version-kind", [])}

    def place(node: dict, gotype: str) -> dict:
        out: dict = {}
        if ref := node.get("$ref", "").removeprefix("#/definitions/"):
            if ref in SPECIAL:
                out["t"], plain = SPECIAL[ref]
            else:
                out["t"], out["r"] = "struct", short(ref)
                plain = ".".join(short(ref).split(".")[-2:])
                wanted.append(short(ref))
        elif node.get("type") == "array":
            inner = place(node["items"], gotype.removeprefix("[]") if gotype.startswith("[]") else "")
            out["t"], out["i"] = "array", inner
            plain = "[]" + inner.get("g", inner["plain"])
        elif node.get("type") == "object" and "additionalProperties" in node:
            inner = place(node["additionalProperties"], gotype.split("]", 1)[1] if gotype.startswith("map[") else "")
            out["t"], out["v"] = "map", inner
            plain = "map[string]" + inner.get("g", inner["plain"])
        elif node.get("type") == "object":
            out["t"], plain = "any", "map[string]interface {}"
        else:
            out["t"] = SCALARS[node["type"], node.get("format", "")]
            plain = {"bytes": "[]uint8", "double": "float64"}.get(out["t"], out["t"])
        out["plain"] = plain
        if gotype and gotype.lstrip("*") != plain:
            out["g"] = gotype.lstrip("*")
        for key, name in (("mk", "patch-merge-key"), ("ps", "patch-strategy"), ("lt", "list-type"), ("mt", "map-type"), ("lk", "list-map-keys")):
            if f"x-kubernetes-{name}" in node:
                out[key] = node[f"x-kubernetes-{name}"]
        return out

    def strip(place: dict) -> dict:
        return {k: strip(v) if k in "iv" else v for k, v in place.items() if k != "plain"}

    wanted = MORE + [
        kinds[r.get("group", ""), r["version"], k]
        for r in rows
        for k in {r["kind"]} | {s["kind"] for s in r["subresources"].values()}
        if (r.get("group", ""), r["version"], k) in kinds
    ]
    out: dict = {}
    while wanted:
        name = wanted.pop()
        if name in out:
            continue
        fields = out[name] = {}
        facts = go.get(name, {})
        for field, node in definitions[name].get("properties", {}).items():
            gotype, _, embedded = facts.get(field, "string?").partition(" ")
            bare = gotype.rstrip("?")
            made = place(node, bare if field in facts else "")
            if bare.startswith("*"):
                made["p"] = 1
            if "?" not in gotype or (
                made["t"] in ("struct", "time", "microtime", "quantity", "intstr") and not bare.startswith("*") and not gotype.endswith("??")
            ):
                made["z"] = 1
            if embedded:
                made["e"] = embedded
            fields[field] = strip(made)
        if definitions[name].get("x-kubernetes-map-type"):
            fields[""] = {"mt": definitions[name]["x-kubernetes-map-type"]}
    return {"kinds": {"/".join(k): v for k, v in sorted(kinds.items()) if v in out}, "definitions": {k: out[k] for k in sorted(out)}}


WRAPPED = {  # messages that stand for a single JSON value -> the codec's name for it
    "apimachinery.pkg.api.resource.Quantity": "quantity", "apimachinery.pkg.util.intstr.IntOrString": "intstr", "apimachinery.pkg.apis.meta.v1.Time": "time",
    "apimachinery.pkg.apis.meta.v1.MicroTime": "microtime", "apimachinery.pkg.runtime.RawExtension": "raw", "apimachinery.pkg.apis.meta.v1.FieldsV1": "raw",
    "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSON": "raw", "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "schema-or-array",
    "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "schema-or-bool",
    "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "schema-or-strings",
}  # fmt: skip
SCHEMA = short("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")


# JSON names that are not the protobuf field's own
RENAMED = {"Webhooks": "webhooks", "Expression": "expression", "Name": "name", "uID": "uid", "aPIGroup": "apiGroup", "ref": "$ref", "schema": "$schema"}


def protobuf(swagger: dict, fields: dict, tables: dict, go: dict) -> dict[str, list]:
    """Per message (by its definition's short name, `core.v1.Pod`) its fields: [number, JSON name, kind, message or "", flags].

    Flags: 1 repeated, 2 map, 4 written even when zero (a pointer, or not omitempty, in the Go type: tools/gotypes.json), 8 inlined in JSON.
    """
    definitions = {short(k): v for k, v in swagger["definitions"].items()}
    known = {
        short("io.k8s." + n.removeprefix("k8s.io.").replace("_apiserver", "-apiserver").replace("_aggregator", "-aggregator")): f for n, f in fields.items()
    }
    names = {n: short("io.k8s." + n.removeprefix("k8s.io.").replace("_apiserver", "-apiserver").replace("_aggregator", "-aggregator")) for n in fields}
    wrapped = {short("io.k8s." + n.replace("_apiserver", "-apiserver")): w for n, w in WRAPPED.items()}
    facts, out = dict(go), {}
    wanted = [n for n in known if n in tables["definitions"] or n.removesuffix("List") in tables["definitions"]] + [
        names[n] for n in fields if ".runtime." in n
    ]
    while wanted:
        message = wanted.pop()
        if message in out or message in wrapped:
            continue
        definition = definitions.get(message) or {}
        properties = definition.get("properties") or {}
        rows = []
        for name, (number, kind) in known[message].items():
            flags = 0
            if kind.startswith("repeated "):
                kind, flags = kind.removeprefix("repeated "), 1
            elif kind.startswith("map<string,"):
                kind, flags = kind.removeprefix("map<string,").removesuffix(">").removeprefix("."), 2
            target = names.get(kind) or (f"{message.rsplit('.', 1)[0]}.{kind}" if f"{message.rsplit('.', 1)[0]}.{kind}" in known else "")
            json_name = name
            if name not in properties and definition:
                if target and target not in wrapped and not flags:
                    flags = 8
                    facts.setdefault(target, facts.get(message, {}))
                else:
                    kebab = re.sub("[A-Z]", lambda m: "-" + m[0].lower(), name)
                    json_name = kebab if kebab in properties else RENAMED.get(name, name)
            gotype = facts.get(message, {}).get(json_name, "string?").partition(" ")[0]
            if gotype.startswith("*") or "?" not in gotype:
                flags |= 4
            if kind.endswith("ExtraValue"):
                kind, target = "strings", ""
            elif target in wrapped:
                kind = wrapped[target]
                target = SCHEMA if kind.startswith("schema") else ""
            elif target:
                kind = "message"
                wanted.append(target)
            rows.append([number, json_name, kind, target, flags])
        out[message] = sorted(rows)
    return dict(sorted(out.items()))


def main() -> None:
    reference = Path(sys.argv[1])
    swagger = json.loads((reference / "swagger.json").read_text())
    discovery = json.loads((reference / "discovery-aggregated.json").read_text())
    API.mkdir(parents=True, exist_ok=True)
    SERVER.mkdir(parents=True, exist_ok=True)
    (API / "resources.json").write_text("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in resources(swagger, discovery)) + "\n]\n")
    gotypes = json.loads((ROOT / "tools/gotypes.json").read_text())
    tables = schema(swagger, resources(swagger, discovery), gotypes)
    lines = ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in tables["definitions"].items())
    (API / "schema.json").write_text(f'{{"kinds":{json.dumps(tables["kinds"])},\n"definitions":{{\n{lines}\n}}}}\n')
    (API / "swagger.json.xz").write_bytes(lzma.compress(json.dumps(swagger, separators=(",", ":"), sort_keys=True).encode(), preset=9 | lzma.PRESET_EXTREME))
    table = protobuf(swagger, json.loads((reference / "protobuf-fields.json").read_text()), tables, gotypes)
    (API / "protobuf.json").write_text("{\n" + ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in table.items()) + "\n}\n")
    objects = []
    for f in sorted((reference / "rbac").glob("*.yaml")):
        for doc in yaml.safe_load_all(f.read_text()):
            objects += doc["items"] if doc.get("kind", "").endswith("List") else [doc]
    (SERVER / "rbac.json").write_text("[\n" + ",\n".join(json.dumps(o, separators=(",", ":")) for o in objects) + "\n]\n")


if __name__ == "__main__":
    main()
