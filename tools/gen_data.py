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


def main() -> None:
    reference = Path(sys.argv[1])
    swagger = json.loads((reference / "swagger.json").read_text())
    discovery = json.loads((reference / "discovery-aggregated.json").read_text())
    API.mkdir(parents=True, exist_ok=True)
    SERVER.mkdir(parents=True, exist_ok=True)
    (API / "resources.json").write_text("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in resources(swagger, discovery)) + "\n]\n")
    (API / "swagger.json.xz").write_bytes(lzma.compress(json.dumps(swagger, separators=(",", ":"), sort_keys=True).encode(), preset=9 | lzma.PRESET_EXTREME))
    objects = []
    for f in sorted((reference / "rbac").glob("*.yaml")):
        for doc in yaml.safe_load_all(f.read_text()):
            objects += doc["items"] if doc.get("kind", "").endswith("List") else [doc]
    (SERVER / "rbac.json").write_text("[\n" + ",\n".join(json.dumps(o, separators=(",", ":")) for o in objects) + "\n]\n")


if __name__ == "__main__":
    main()
