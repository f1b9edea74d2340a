"""LimitRanger: defaults for containers that name no requests or limits, and bounds on containers, pods and claims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastkube.api import resources
from fastkube.api.quantity import canonical, nanos, text
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden, is_a
from fastkube.server.admission.usage import Amounts, pod_amounts
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

LIMIT_RANGES = resources.parse("v1/limitranges")
ANNOTATION = "kubernetes.io/limit-ranger"


class LimitRanger(Plugin):
    name = "LimitRanger"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._namespaces: dict[str, int] = {}  # how many limit ranges each has
        reader.on_change(LIMIT_RANGES, self._changed)
        for obj in reader.list(LIMIT_RANGES):
            self._changed(obj, None)

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        if is_a(resource, "", "pods"):
            return (operation == CREATE and not subresource) or (operation == UPDATE and subresource == "resize")
        return operation in (CREATE, UPDATE) and not subresource and is_a(resource, "", "persistentvolumeclaims")

    def admit(self, attributes: AdmissionAttributes) -> None:
        if attributes.namespace not in self._namespaces or attributes.resource.plural != "pods" or attributes.operation != CREATE or attributes.obj is None:
            return
        for limit_range in self._of(attributes.namespace):
            set_defaults(attributes.obj, limit_range)

    def validate(self, attributes: AdmissionAttributes) -> None:
        if attributes.namespace not in self._namespaces or attributes.obj is None:
            return
        for limit_range in self._of(attributes.namespace):
            items = limit_range["spec"].get("limits") or ()
            check = pod_problems if attributes.resource.plural == "pods" else claim_problems
            problems = [p for item in items for p in check(attributes.obj, item)]
            if problems:
                raise forbidden(attributes, problems[0] if len(problems) == 1 else "[" + ", ".join(dict.fromkeys(problems)) + "]")

    def _of(self, namespace: str) -> list[Object]:
        return sorted(self._reader.list(LIMIT_RANGES, namespace), key=lambda o: o["metadata"]["name"])

    def _changed(self, new: Object | None, old: Object | None) -> None:
        if (new is None) == (old is None):
            return
        namespace = (new or old or {})["metadata"]["namespace"]
        self._namespaces[namespace] = self._namespaces.get(namespace, 0) + (1 if new else -1)
        if not self._namespaces[namespace]:
            del self._namespaces[namespace]


def set_defaults(pod: Object, limit_range: Object) -> None:
    """Requests and limits that containers leave open, and an annotation that says so."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    for item in limit_range["spec"].get("limits") or ():
        if item.get("type") == "Container":
            requests = {**(item.get("defaultRequest") or {}), **requests}
            limits = {**(item.get("default") or {}), **limits}
    notes: list[str] = []
    for field, word in (("containers", "container"), ("initContainers", "init container")):
        for container in pod["spec"].get(field) or ():
            for kind, defaults in (("requests", requests), ("limits", limits)):
                filled = _fill(container, kind, defaults)
                if filled:
                    notes.append(f"{', '.join(filled)} {kind[:-1]} for {word} {container['name']}")
    if notes:
        annotations = pod["metadata"].setdefault("annotations", {})
        annotations[ANNOTATION] = "LimitRanger plugin set: " + "; ".join(notes)


def _fill(container: Object, kind: str, defaults: dict[str, str]) -> list[str]:
    own = (container.get("resources") or {}).get(kind) or {}
    missing = sorted(name for name in defaults if name not in own)
    if missing:
        container.setdefault("resources", {})[kind] = {**own, **{name: defaults[name] for name in missing}}
    return missing


def pod_problems(pod: Object, item: Object) -> Iterator[str]:
    spec = pod["spec"]
    if item.get("type") == "Container":
        for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
            held = container.get("resources") or {}
            yield from _problems(item, _exact(held.get("requests")), _exact(held.get("limits")))
    elif item.get("type") == "Pod":
        yield from _problems(item, pod_amounts(spec, "requests"), pod_amounts(spec, "limits"), pod=True)


def claim_problems(claim: Object, item: Object) -> Iterator[str]:
    if item.get("type") == "PersistentVolumeClaim":
        requests = _exact((claim["spec"].get("resources") or {}).get("requests"))
        for name, bound in (item.get("min") or {}).items():
            yield from _below(name, "PersistentVolumeClaim", bound, requests, {})
        for name, bound in (item.get("max") or {}).items():
            if name not in requests:
                yield f"maximum {name} usage per PersistentVolumeClaim is {canonical(bound)}.  No request is specified"
            elif requests[name] > nanos(bound):
                yield f"maximum {name} usage per PersistentVolumeClaim is {canonical(bound)}, but request is {text(requests[name], _form(bound))}"


def _problems(item: Object, requests: Amounts, limits: Amounts, pod: bool = False) -> Iterator[str]:
    kind = item["type"]
    for name, bound in (item.get("min") or {}).items():
        yield from _below(name, kind, bound, requests, limits)
    for name, bound in (item.get("max") or {}).items():
        yield from _above(name, kind, bound, requests, limits)
    for name, ratio in (item.get("maxLimitRequestRatio") or {}).items():
        yield from _ratio(name, kind, ratio, requests, limits)


def _below(name: str, kind: str, bound: str, requests: Amounts, limits: Amounts) -> Iterator[str]:
    start = f"minimum {name} usage per {kind} is {canonical(bound)}"
    if name not in requests:
        yield f"{start}.  No request is specified"
    elif requests[name] < nanos(bound):
        yield f"{start}, but request is {text(requests[name], _form(bound))}"
    elif name in limits and limits[name] < nanos(bound):
        yield f"{start}, but limit is {text(limits[name], _form(bound))}"


def _above(name: str, kind: str, bound: str, requests: Amounts, limits: Amounts) -> Iterator[str]:
    start = f"maximum {name} usage per {kind} is {canonical(bound)}"
    if name not in limits:
        yield f"{start}.  No limit is specified"
    elif limits[name] > nanos(bound):
        yield f"{start}, but limit is {text(limits[name], _form(bound))}"
    elif name in requests and requests[name] > nanos(bound):
        yield f"{start}, but request is {text(requests[name], _form(bound))}"


def _ratio(name: str, kind: str, ratio: str, requests: Amounts, limits: Amounts) -> Iterator[str]:
    start = f"{name} max limit to request ratio per {kind} is {canonical(ratio)}"
    if not requests.get(name):
        yield f"{start}, but no request is specified or request is 0"
    elif not limits.get(name):
        yield f"{start}, but no limit is specified or limit is 0"
    elif limits[name] * 10**9 > nanos(ratio) * requests[name]:
        yield f"{start}, but provided ratio is {limits[name] / requests[name]:f}"


def _exact(amounts: Any) -> Amounts:
    return {name: nanos(value) for name, value in (amounts or {}).items()}


def _form(like: str) -> str:
    """Amounts are shown in binary units where the bound is (or memory would read as plain bytes)."""
    return "binary" if like.endswith("i") else "decimal"
