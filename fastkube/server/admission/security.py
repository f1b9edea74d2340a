"""PodSecurity: the namespace's labels pod-security.kubernetes.io/{enforce,audit,warn}[-version] say what its pods may be (KEP-2579).

Pods that violate `enforce` are refused; `warn` warns their makers, also those of workloads with a pod template; `audit` leaves an annotation. A
namespace whose enforced level is tightened is told which of its pods would not pass.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fastkube.api import errors, resources
from fastkube.api.errors import FieldError
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden, is_a
from fastkube.server.admission.podsecurity import LATEST, LEVELS, PRIVILEGED, describe, violations
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

NAMESPACES = resources.parse("v1/namespaces")
PODS = resources.parse("v1/pods")
PREFIX = "pod-security.kubernetes.io/"
NAMESPACE_PODS_MAX = 3000  # of a namespace that is tightened, looked at for the warning
WARNINGS_MAX = 10  # lines of that warning

# Resources with a pod template -> where it is.
_TEMPLATES = {
    ("", "replicationcontrollers"): ("spec", "template"), ("", "podtemplates"): ("template",), ("apps", "deployments"): ("spec", "template"),
    ("apps", "replicasets"): ("spec", "template"), ("apps", "statefulsets"): ("spec", "template"), ("apps", "daemonsets"): ("spec", "template"),
    ("batch", "jobs"): ("spec", "template"), ("batch", "cronjobs"): ("spec", "jobTemplate", "spec", "template"),
}  # fmt: skip


class Policy(NamedTuple):
    level: str
    version: int

    def __str__(self) -> str:
        return f"{self.level}:{'latest' if self.version == LATEST else f'v1.{self.version}'}"


class PodSecurity(Plugin):
    name = "PodSecurity"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        if operation not in (CREATE, UPDATE):
            return False
        if is_a(resource, "", "pods"):
            return not subresource or subresource in ("ephemeralcontainers", "resize")
        return not subresource and (resource is NAMESPACES or (resource.group, resource.plural) in _TEMPLATES)

    def validate(self, attributes: AdmissionAttributes) -> None:
        obj = attributes.obj
        if obj is None:
            return
        if attributes.resource is NAMESPACES:
            self._namespace(attributes, obj)
            return
        namespace = self._reader.get(NAMESPACES, None, attributes.namespace)
        labels = (namespace or {}).get("metadata", {}).get("labels") or {}
        if not any(key.startswith(PREFIX) for key in labels):
            return
        if attributes.resource.plural == "pods":
            if attributes.operation == UPDATE and attributes.old is not None and not _significant(obj, attributes.old):
                return
            self._judge(attributes, labels, obj["metadata"], obj["spec"], enforce=True)
        else:
            template: Object = obj
            for key in _TEMPLATES[attributes.resource.group, attributes.resource.plural]:
                template = template.get(key) or {}
            if template.get("spec"):
                self._judge(attributes, labels, template.get("metadata") or {}, template["spec"], enforce=False)

    def _judge(self, attributes: AdmissionAttributes, labels: dict[str, str], meta: Object, spec: Object, enforce: bool) -> None:
        policies = {mode: policy(labels, mode)[0] for mode in ("enforce", "audit", "warn")}
        found = {mode: violations(p.level, p.version, meta, spec) for mode, p in policies.items() if enforce or mode != "enforce"}
        if found.get("audit"):
            attributes.annotations["pod-security.kubernetes.io/audit-violations"] = (
                f'would violate PodSecurity "{policies["audit"]}": {describe(found["audit"])}'
            )
        if enforce:
            attributes.annotations["pod-security.kubernetes.io/enforce-policy"] = str(policies["enforce"])
            if found["enforce"]:
                raise forbidden(attributes, f'violates PodSecurity "{policies["enforce"]}": {describe(found["enforce"])}')
        if found.get("warn"):
            attributes.warnings.append(f'would violate PodSecurity "{policies["warn"]}": {describe(found["warn"])}')

    def _namespace(self, attributes: AdmissionAttributes, namespace: Object) -> None:
        labels = namespace["metadata"].get("labels") or {}
        old_labels = ((attributes.old or {}).get("metadata") or {}).get("labels") or {}
        new, problems = policy(labels, "enforce")
        for mode in ("audit", "warn"):
            problems = problems + policy(labels, mode)[1]
        old, old_problems = policy(old_labels, "enforce")
        for mode in ("audit", "warn"):
            old_problems = old_problems + policy(old_labels, mode)[1]
        if problems and (attributes.operation == CREATE or not old_problems):
            raise errors.invalid("Namespace", "", namespace["metadata"]["name"], problems)
        if attributes.operation == UPDATE and not problems and new != old and new.level != PRIVILEGED:
            attributes.warnings += self._existing(namespace["metadata"]["name"], new)

    def _existing(self, namespace: str, new: Policy) -> list[str]:
        """Which pods of the namespace would not pass, grouped by what is wrong with them."""
        pods: dict[str, list[str]] = {}
        for number, pod in enumerate(self._reader.list(PODS, namespace)):
            if number >= NAMESPACE_PODS_MAX:
                break
            found = violations(new.level, new.version, pod["metadata"], pod["spec"])
            if found:
                pods.setdefault(", ".join(reason for reason, _ in found), []).append(pod["metadata"]["name"])
        if not pods:
            return []
        lines = [f'existing pods in namespace "{namespace}" violate the new PodSecurity enforce level "{new}"']
        for text, names in sorted(pods.items(), key=lambda item: min(item[1]))[:WARNINGS_MAX]:
            others = f" (and {len(names) - 1} other pod{'s' if len(names) > 2 else ''})" if len(names) > 1 else ""
            lines.append(f"{min(names)}{others}: {text}")
        return lines


_VERSION = re.compile(r"v1\.(0|[1-9][0-9]{0,4})")


def policy(labels: dict[str, str], mode: str) -> tuple[Policy, list[FieldError]]:
    """The policy of a mode and what is wrong with its labels (a wrong level counts as restricted, for what it guards)."""
    level, version = labels.get(PREFIX + mode), labels.get(f"{PREFIX}{mode}-version")
    problems: list[FieldError] = []
    if level is not None and level not in LEVELS:
        problems.append(errors.invalid_value(f"metadata.labels[{PREFIX}{mode}]", level, f"must be one of {', '.join(LEVELS)}"))
        level = "restricted" if mode == "enforce" else PRIVILEGED
    number = LATEST
    if version is not None and version != "latest":
        match = _VERSION.fullmatch(version)
        if match:
            number = int(match[1])
        else:
            problems.append(errors.invalid_value(f"metadata.labels[{PREFIX}{mode}-version]", version, 'must be "latest" or "v1.x"'))
    return Policy(level or PRIVILEGED, number), problems


def _significant(new: Object, old: Object) -> bool:
    """Whether an update of a pod changes what policies look at: containers or annotations."""
    if (new["metadata"].get("annotations") or {}) != (old["metadata"].get("annotations") or {}):
        return True
    return any(new["spec"].get(f) != old["spec"].get(f) for f in ("containers", "initContainers", "ephemeralContainers"))
