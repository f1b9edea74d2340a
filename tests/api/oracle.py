"""Drives the pure functions of `fastkube.api` through upstream's recorded requests, without a server: decode, default, prepare, validate.

What a server adds (addresses, admission for pods, managedFields) is emulated as little as the comparison needs, or left out of it.

    python -m tests.api.oracle [--only REGEX] [--show N]
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastkube.api import codec, convert, errors, kinds, meta, resources

REFERENCE = Path(__file__).resolve().parents[3] / "shared/reference/oracle.jsonl.gz"
REPLAY = Path(__file__).resolve().parents[3] / "shared/tools/replay.py"
NOW = "2026-11-20T00:00:00Z"


def replay() -> Any:
    spec = importlib.util.spec_from_file_location("replay", REPLAY)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> Iterator[dict[str, Any]]:
    with gzip.open(REFERENCE, "rt") as lines:
        for line in lines:
            case = json.loads(line)
            # Reviews are answered, not stored: the API server's part.
            if "steps" not in case and case["method"] in ("POST", "PUT") and "Review/" not in case["id"]:
                yield case


_PROTECTED = {
    "PersistentVolume": "kubernetes.io/pv-protection",
    "PersistentVolumeClaim": "kubernetes.io/pvc-protection",
    "VolumeAttributesClass": "kubernetes.io/vac-protection",
}
_USER = {"username": "bench", "uid": "00000000-0000-0000-0000-000000000000", "groups": ["system:masters", "system:authenticated"]}


def admit(obj: dict[str, Any], new: bool = True) -> None:
    """What upstream's admission and request-aware strategies do to the objects of the recording."""
    kind, spec = obj["kind"], obj.get("spec")
    if kind in _PROTECTED and new:
        obj["metadata"].setdefault("finalizers", []).append(_PROTECTED[kind])
    elif kind == "Node" and new and not any(t.get("key") == "node.kubernetes.io/not-ready" for t in spec.get("taints") or ()):
        spec.setdefault("taints", []).append({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"})
    elif kind == "CertificateSigningRequest" and new:
        spec.update(_USER)
    elif kind == "Pod" and spec:
        admit_pod(spec, new)


def admit_pod(spec: dict[str, Any], new: bool) -> None:
    tolerations = spec.setdefault("tolerations", [])
    for key in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{key}"
        if not any(t.get("key") in (key, None) and t.get("effect") in ("NoExecute", None) for t in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    if not new:
        spec.setdefault("priority", 0)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        return
    spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = spec["serviceAccountName"]
    if spec.get("priorityClassName") is None:
        spec.setdefault("priority", 0)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    mount = {"name": "kube-api-access-abcde", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    if spec.get("automountServiceAccountToken") is False:
        return
    for container in (spec.get("containers") or []) + (spec.get("initContainers") or []):
        container.setdefault("volumeMounts", []).append(dict(mount))
    source = {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            {"configMap": {"name": "openshift-service-ca.crt", "items": [{"key": "service-ca.crt", "path": "service-ca.crt"}]}},
        ],
    }
    spec.setdefault("volumes", []).append({"name": mount["name"], "projected": source})


def find(path: str) -> tuple[resources.Resource, str | None, str | None]:
    """The resource, namespace and name of a request's path."""
    parts = path.split("?")[0].strip("/").split("/")
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = resources.find(group, version, rest[0])
    assert resource is not None, path
    return resource, namespace, rest[1] if len(rest) > 1 else None


class Outcome(Exception):
    pass


def create(resource: resources.Resource, namespace: str | None, body: dict[str, Any], validation: str) -> tuple[dict[str, Any], list[str]]:
    """-> (the object as it would be stored, warnings). Raises ApiError."""
    obj, warnings = codec.read(json.dumps(body).encode(), "application/json", resource.group, resource.version, resource.kind, validation=validation)
    obj = convert.to_storage(resource, obj)
    rules = kinds.of(*convert.storage_kind(resource))
    rules.default(obj)
    meta.prepare_create(obj, namespace, resource.namespaced)
    meta.fill_create(obj, NOW, "00000000-0000-0000-0000-000000000000", "abcde")
    rules.prepare_create(obj)
    admit(obj)
    found = meta.validate_create(rules, obj, resource.namespaced) + rules.validate_create(obj)
    if found:
        raise errors.invalid(resource.kind, rules.error_group, obj["metadata"].get("name", ""), found)
    return obj, warnings + rules.warnings(obj)


def update(
    resource: resources.Resource, namespace: str | None, name: str, body: dict[str, Any], old: dict[str, Any], validation: str
) -> tuple[dict[str, Any], list[str]]:
    obj, warnings = codec.read(json.dumps(body).encode(), "application/json", resource.group, resource.version, resource.kind, validation=validation)
    obj = convert.to_storage(resource, obj)
    meta.check_name(obj, name)
    rules = kinds.of(*convert.storage_kind(resource))
    rules.default(obj)
    if found := meta.version_missing(rules, obj):
        raise errors.invalid(resource.plural, resource.group, name, found)
    obj["metadata"].setdefault("resourceVersion", "1")
    meta.prepare_update(obj, old, namespace, resource.namespaced)
    rules.prepare_update(obj, old)
    admit(obj, new=False)
    found = meta.validate_update(obj, old) + rules.validate_update(obj, old)
    if found:
        raise errors.invalid(resource.kind, rules.error_group, obj["metadata"].get("name", ""), found)
    return obj, warnings + rules.warnings(obj, old)


def answer(case: dict[str, Any], stored: dict[str, Any]) -> tuple[int, Any, list[str]]:
    """(code, answer, warnings) of one recorded request."""
    resource, namespace, name = find(case["path"])
    text = kinds.of(resource.group, resource.kind).deprecated
    deprecated = [text] if text else []
    validation = "Strict" if "fieldValidation=Strict" in case["path"] else "Warn"
    try:
        if case["method"] == "POST":
            obj, warnings = create(resource, namespace, case["body"], validation)
            code = 201
        else:
            key = json.dumps(case["setup"], sort_keys=True)
            if key not in stored:
                stored[key], _ = create(resource, namespace, case["setup"], "Ignore")
                stored[key]["metadata"]["resourceVersion"] = "1"
            assert name is not None
            obj, warnings = update(resource, namespace, name, case["body"], copy.deepcopy(stored[key]), validation)
            code = 200
        return code, convert.from_storage(resource, obj), deprecated + warnings
    except errors.ApiError as e:
        return e.code, e.status(), deprecated


def comparable(x: Any) -> Any:
    """An answer without what only a server can know."""
    if isinstance(x, dict) and x.get("kind") != "Status":
        x = copy.deepcopy(x)
        x.get("metadata", {}).pop("managedFields", None)
        x.get("metadata", {}).pop("resourceVersion", None)
        if x.get("kind") == "Service":
            for key in ("clusterIP", "clusterIPs", "healthCheckNodePort"):
                x["spec"].pop(key, None)
            for port in x["spec"].get("ports") or ():
                port.pop("nodePort", None)
    return x


def score(only: str = "", show: int = 0) -> tuple[Counter[str], list[dict[str, Any]]]:
    """-> (counts of "cases", "code", "why", "whole", the differing cases)."""
    tool = replay()
    counts: Counter[str] = Counter()
    differ: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    for case in cases():
        if only and not re.search(only, case["id"]):
            continue
        try:
            code, got, warnings = answer(case, stored)
        except Exception as e:
            if show < 0:
                raise
            code, got, warnings = 0, f"{type(e).__name__}: {e}", []
        got = tool.normal(comparable(json.loads(json.dumps(got))))
        want = comparable(case["answer"])
        same = code == case["code"]
        level = "code" if not same else ""
        counts["cases"] += 1
        counts["code"] += same
        same = same and (code < 300 or tool.causes(got) == tool.causes(want))
        level = level or ("why" if not same else "")
        counts["why"] += same
        warnings = [w.replace("\\", "\\\\").replace('"', '\\"').rstrip('"') for w in warnings]  # as replay.py reads the header
        same = same and got == want and warnings == case["warnings"]
        level = level or ("whole" if not same else "")
        counts["whole"] += same
        if level:
            differ.append(
                {"id": case["id"], "level": level, "body": case["body"], "want": [case["code"], want, case["warnings"]], "got": [code, got, warnings]}
            )
    return counts, differ


def difference(want: Any, got: Any, at: str = "") -> list[str]:
    if isinstance(want, dict) and isinstance(got, dict):
        return [line for k in sorted({*want, *got}) for line in difference(want.get(k, "<none>"), got.get(k, "<none>"), f"{at}.{k}")]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return [line for i, (a, b) in enumerate(zip(want, got, strict=True)) for line in difference(a, b, f"{at}[{i}]")]
    return [] if want == got else [f"{at}: want {json.dumps(want)[:600]} got {json.dumps(got)[:600]}"]


def main() -> None:
    args = sys.argv[1:]
    only = args[args.index("--only") + 1] if "--only" in args else ""
    show = int(args[args.index("--show") + 1]) if "--show" in args else 0
    level = args[args.index("--level") + 1] if "--level" in args else ""
    counts, differ = score(only, -1 if "--raise" in args else show)
    for d in [d for d in differ if not level or d["level"] in level.split(",")][:show]:
        (code, want, warn), (code2, got, warn2) = d["want"], d["got"]
        print(d["id"], d["level"], code, code2)
        if isinstance(want, dict) and want.get("kind") == "Status":
            print(
                "   want",
                str(want.get("message"))[:700],
                [(c["field"], c["reason"]) for c in want.get("details", {}).get("causes", [])][:9] if "-f" in args else "",
            )
            print("   got ", str(got.get("message"))[:700] if isinstance(got, dict) and got.get("kind") == "Status" else json.dumps(got)[:200])
        else:
            for line in (
                difference(want, got)
                if isinstance(got, dict) and got.get("kind") != "Status"
                else [str(got.get("message") if isinstance(got, dict) else got)[:500]]
            )[:12]:
                print("   ", line)
        if warn != warn2:
            print("    warnings", warn, warn2)
    by = Counter(d["id"].split("/")[0] for d in differ)
    print(by.most_common(80))
    print({k: round(100 * counts[k] / max(1, counts["cases"]), 2) if k != "cases" else counts[k] for k in counts})


if __name__ == "__main__":
    main()
