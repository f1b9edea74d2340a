"""The rules of each built-in kind, found by group and kind. One module per API group (the large kinds of the core group in modules of their own)."""

from __future__ import annotations

import functools
import importlib

from fastkube.api.kinds.base import Kind

_MODULES = {
    "": ("config", "pod", "workloads", "service", "node", "storage", "event"),
    "admissionregistration.k8s.io": ("admissionregistration",),
    "apiextensions.k8s.io": ("apiextensions",),
    "apiregistration.k8s.io": ("apiregistration",),
    "apps": ("apps",),
    "authentication.k8s.io": ("reviews",),
    "authorization.k8s.io": ("reviews",),
    "autoscaling": ("autoscaling",),
    "batch": ("batch",),
    "certificates.k8s.io": ("certificates",),
    "coordination.k8s.io": ("coordination",),
    "discovery.k8s.io": ("discovery",),
    "events.k8s.io": ("event",),
    "flowcontrol.apiserver.k8s.io": ("flowcontrol",),
    "networking.k8s.io": ("networking",),
    "node.k8s.io": ("runtimeclass",),
    "policy": ("policy",),
    "rbac.authorization.k8s.io": ("rbac",),
    "resource.k8s.io": ("resource",),
    "scheduling.k8s.io": ("scheduling",),
    "storage.k8s.io": ("storage_classes",),
}


@functools.cache
def _group(group: str) -> dict[str, Kind]:
    rules: dict[str, Kind] = {}
    for name in _MODULES.get(group, ()):
        module = importlib.import_module(f"fastkube.api.kinds.{name}")
        rules.update({rule.kind: rule() for rule in module.KINDS if rule.group == group})
    return rules


_PLAIN = Kind()


def of(group: str, kind: str) -> Kind:
    """The rules of a kind; the base class' own for one that has none (custom kinds)."""
    return _group(group).get(kind, _PLAIN)
