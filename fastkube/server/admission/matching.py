"""Which writes webhooks and policies are for: rules, selectors, and the request as they are shown it (admission.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastkube.api import resources, selectors
from fastkube.api.resources import Resource
from fastkube.runtime import entropy
from fastkube.server.authn.reviews import user_info
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

NAMESPACES = resources.parse("v1/namespaces")
GROUP = "admissionregistration.k8s.io"
_OPTIONS = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions"}


def exempt(attributes: AdmissionAttributes) -> bool:
    """Writes of what configures admission are not themselves subject to it: nobody locks himself out."""
    return attributes.resource.group == GROUP


def any_rule(rules: Iterable[Object], attributes: AdmissionAttributes, equivalent: bool = True) -> bool:
    """Whether one of `rules` (RuleWithOperations) is for this write; `equivalent`: also for the same objects under another version or group."""
    return any(_rule(rule, attributes, resource) for rule in rules for resource in _versions(attributes.resource, equivalent))


def _versions(resource: Resource, equivalent: bool) -> list[Resource]:
    if not equivalent:
        return [resource]
    return [resource, *(r for r in resources.builtin() if r.prefix == resource.prefix and r is not resource)]


def _rule(rule: Object, attributes: AdmissionAttributes, resource: Resource) -> bool:
    return (
        _holds(rule.get("operations"), attributes.operation)
        and _holds(rule.get("apiGroups"), resource.group)
        and _holds(rule.get("apiVersions"), resource.version)
        and _scope(rule.get("scope", "*"), attributes)
        and any(_resource(text, resource.plural, attributes.subresource) for text in rule.get("resources") or ())
        and (not rule.get("resourceNames") or attributes.name in rule["resourceNames"])
    )


def _holds(values: Iterable[str] | None, wanted: str) -> bool:
    return any(v in ("*", wanted) for v in values or ())


def _scope(scope: str, attributes: AdmissionAttributes) -> bool:
    if scope == "Namespaced":
        return attributes.resource.namespaced
    return scope == "*" or not attributes.resource.namespaced


def _resource(text: str, plural: str, subresource: str) -> bool:
    if text in ("*/*", plural if not subresource else f"{plural}/{subresource}"):
        return True
    name, slash, sub = text.partition("/")
    if not slash:
        return name == "*" and not subresource
    return name in ("*", plural) and sub in ("*", subresource)


def selected(reader: Reader, holder: Object, attributes: AdmissionAttributes) -> bool:
    """Whether namespaceSelector and objectSelector of `holder` (a webhook, a policy's match resources) let this write in."""
    namespaces, objects = holder.get("namespaceSelector"), holder.get("objectSelector")
    if objects:
        selector = selectors.from_object(objects)
        if not any(selector.matches(_labels(o)) for o in (attributes.obj, attributes.old) if o is not None):
            return False
    if not namespaces:
        return True
    selector = selectors.from_object(namespaces)
    if attributes.resource is NAMESPACES:
        return selector.matches(_labels(attributes.obj or attributes.old))
    if not attributes.resource.namespaced:
        return True
    return selector.matches(_labels(reader.get(NAMESPACES, None, attributes.namespace)))


def _labels(obj: Object | None) -> dict[str, str]:
    return ((obj or {}).get("metadata") or {}).get("labels") or {}


def request_of(attributes: AdmissionAttributes) -> dict[str, Any]:
    """The AdmissionRequest, objects left out."""
    resource = attributes.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    what = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    obj = attributes.obj or attributes.old or {}
    meta = obj.get("metadata") or {}
    request: dict[str, Any] = {
        "uid": entropy.uid(), "kind": kind, "resource": what, "requestKind": kind, "requestResource": what, "name": attributes.name or meta.get("name") or "",
        "namespace": attributes.namespace, "operation": attributes.operation, "userInfo": user_info(attributes.user), "dryRun": attributes.dry_run,
    }  # fmt: skip
    if attributes.subresource:
        request["subResource"] = request["requestSubResource"] = attributes.subresource
    if attributes.operation in _OPTIONS:
        request["options"] = {"kind": _OPTIONS[attributes.operation], "apiVersion": "meta.k8s.io/v1", **attributes.options}
    return request
