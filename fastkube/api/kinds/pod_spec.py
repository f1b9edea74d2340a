"""Validation of a PodSpec, in a pod or a template (upstream: ValidatePodSpec)."""

from __future__ import annotations

import re
from typing import Any

from fastkube.api import formats, quantity
from fastkube.api.errors import duplicate, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds import pod_containers as containers
from fastkube.api.kinds import pod_volumes as volumes
from fastkube.api.kinds.common import INT32_MAX, NOT_POSITIVE, Errors, enum, label_selector, nonnegative, resource_quantity, rule
from fastkube.api.meta import validate_labels

Object = dict[str, Any]

TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_SYSCTL = re.compile(r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?")


def validate(spec: Object, meta: Object, at: str) -> Errors:
    """All errors of a pod spec; `meta` is the pod's or template's metadata."""
    sound, errors = volumes.validate(spec.get("volumes"), meta.get("name") or "", f"{at}.volumes")
    if "resourceClaims" in spec:
        errors += _resource_claims(spec["resourceClaims"] or [], meta.get("name") or "", f"{at}.resourceClaims")
    context = containers.Context(spec, sound)
    errors += containers.containers(spec, context, f"{at}.containers")
    if "initContainers" in spec:
        errors += containers.init_containers(spec, context, f"{at}.initContainers")
    if "ephemeralContainers" in spec:
        errors += containers.ephemeral_containers(spec, context, f"{at}.ephemeralContainers")
    if spec.get("resources"):
        errors += _pod_resources(spec, context, at)
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        errors += enum(spec.get("restartPolicy"), f"{at}.restartPolicy", ("Always", "OnFailure", "Never"))
    if spec.get("dnsPolicy") not in ("ClusterFirst", "Default", "ClusterFirstWithHostNet", "None"):
        errors += enum(spec.get("dnsPolicy"), f"{at}.dnsPolicy", ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"))
    if "nodeSelector" in spec:
        errors += validate_labels(spec["nodeSelector"], f"{at}.nodeSelector")
    if spec.get("hostNetwork"):
        errors += _host_network(spec, at)
    if spec.get("securityContext"):
        errors += _security_context(spec["securityContext"], spec, f"{at}.securityContext")
    if spec.get("affinity"):
        errors += affinity(spec["affinity"], f"{at}.affinity")
    if "dnsConfig" in spec or spec.get("dnsPolicy") == "None":
        errors += _dns_config(spec.get("dnsConfig"), spec.get("dnsPolicy"), f"{at}.dnsConfig")
    for i, gate in enumerate(spec.get("readinessGates") or ()):
        errors += rule(formats.qualified_name, gate.get("conditionType") or "", f"{at}.readinessGates[{i}].conditionType")
    if "schedulingGates" in spec:
        errors += _scheduling_gates(spec["schedulingGates"] or [], f"{at}.schedulingGates")
    if "topologySpreadConstraints" in spec:
        errors += _spread(spec["topologySpreadConstraints"] or [], f"{at}.topologySpreadConstraints")
    if spec.get("hostUsers") is False:
        errors += [forbidden_field(f"{at}.{key}", "when `hostUsers` is false") for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    errors += _names(spec, at)
    if "tolerations" in spec:
        errors += tolerations(spec["tolerations"] or [], f"{at}.tolerations")
    for alias in spec.get("hostAliases") or ():
        if formats.sloppy_ip(alias.get("ip") or "") is None:
            errors.append(invalid_value(f"{at}.hostAliases.ip", alias.get("ip") or "", "must be valid IP address"))
        for hostname in alias.get("hostnames") or ():
            errors += rule(formats.subdomain, hostname, f"{at}.hostAliases.hostnames")
    if spec.get("priorityClassName"):
        errors += rule(formats.subdomain, spec["priorityClassName"], f"{at}.priorityClassName")
    if spec.get("runtimeClassName") is not None:
        errors += rule(formats.subdomain, spec["runtimeClassName"], f"{at}.runtimeClassName")
    if spec.get("preemptionPolicy") is not None:
        errors += enum(spec["preemptionPolicy"], f"{at}.preemptionPolicy", ("PreemptLowerPriority", "Never"))
    if spec.get("overhead"):
        errors += containers.resources({"limits": spec["overhead"]}, set(), f"{at}.overhead")
    if spec.get("os") is not None:
        errors += _os(spec, at)
    return errors


def _names(spec: Object, at: str) -> Errors:
    errors: Errors = []
    hostname, override = spec.get("hostname"), spec.get("hostnameOverride")
    if spec.get("serviceAccountName"):
        errors += rule(formats.subdomain, spec["serviceAccountName"], f"{at}.serviceAccountName")
    if spec.get("nodeName"):
        errors += rule(formats.subdomain, spec["nodeName"], f"{at}.nodeName")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= INT32_MAX:
        errors.append(invalid_value(f"{at}.activeDeadlineSeconds", deadline, formats.in_range(1, INT32_MAX)))
    if hostname:
        errors += rule(formats.label, hostname, f"{at}.hostname")
    if spec.get("subdomain"):
        errors += rule(formats.label, spec["subdomain"], f"{at}.subdomain")
    if override is not None:
        if spec.get("hostNetwork"):
            errors.append(forbidden_field(f"{at}.hostnameOverride", "must not be set when `hostNetwork` is true"))
        if spec.get("setHostnameAsFQDN"):
            errors.append(forbidden_field(f"{at}.hostnameOverride", "must not be set when `setHostnameAsFQDN` is true"))
        errors += rule(formats.subdomain, override, f"{at}.hostnameOverride")
        if len(override.encode()) > 64:
            errors.append(invalid_value(f"{at}.hostnameOverride", override, formats.max_length(64)))
    return errors


def _host_network(spec: Object, at: str) -> Errors:
    """With the host's network a container's port is the host's."""
    return [
        invalid_value(f"{at}.containers[{i}].ports[{j}].containerPort", port.get("containerPort", 0), "must match `hostPort` when `hostNetwork` is true")
        for i, container in enumerate(spec.get("containers") or ())
        for j, port in enumerate(container.get("ports") or ())
        if port.get("hostPort") and port.get("hostPort") != port.get("containerPort")
    ]


def _resource_claims(claims: list[Object], pod_name: str, field: str) -> Errors:
    errors: Errors = []
    names: set[str] = set()
    for i, claim in enumerate(claims):
        at, name = f"{field}[{i}]", claim.get("name") or ""
        if not name:
            errors.append(required(f"{at}.name"))
        elif name in names:
            errors.append(duplicate(f"{at}.name", name))
        else:
            errors += rule(formats.label, name, f"{at}.name")
            names.add(name)
        direct, template = claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName")
        if direct is not None and template is not None:
            errors.append(invalid_value(at, claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
        if direct is None and template is None:
            errors.append(invalid_value(at, claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
        if direct is not None:
            errors += rule(formats.subdomain, direct, f"{at}.resourceClaimName")
        if template is not None:
            errors += rule(formats.subdomain, template, f"{at}.resourceClaimTemplateName")
    return errors


def _pod_resources(spec: Object, context: containers.Context, at: str) -> Errors:
    """Resources of the pod as a whole: CPU, memory and huge pages only, and not less than its containers ask for."""
    whole = spec["resources"]
    errors: Errors = []
    if whole.get("claims"):
        errors.append(forbidden_field(f"{at}.resources.claims", "claims may not be set for Resources at pod-level"))
    for key in ("limits", "requests"):
        for name, amount in (whole.get(key) or {}).items():
            here = f"{at}.resources.{key}[{name}]"
            if name not in ("cpu", "memory") and not name.startswith("hugepages-"):
                errors.append(not_supported(here, name, ("cpu", "hugepages-", "memory")))
            errors += resource_quantity(name, amount, here)
            if key == "requests":
                errors += containers._within(name, amount, whole.get("limits") or {}, f"{at}.resources")
    for name, amount in (whole.get("requests") or {}).items():
        total = _aggregate(spec, "requests", name)
        if total > quantity.nanos(amount):
            errors.append(
                invalid_value(
                    f"{at}.resources.requests[{name}]", amount, f"must be greater than or equal to aggregate container requests of {quantity.text(total)}"
                )
            )
    for name, limit in (whole.get("limits") or {}).items():
        for i, container in enumerate(spec.get("containers") or ()):
            own = ((container.get("resources") or {}).get("limits") or {}).get(name)
            if own is not None and quantity.compare(own, limit) > 0:
                errors.append(invalid_value(f"{at}.containers[{i}].resources.limits", own, f"must be less than or equal to pod limits of {limit}"))
    return errors


def _aggregate(spec: Object, key: str, name: str) -> int:
    return sum(quantity.nanos(((c.get("resources") or {}).get(key) or {}).get(name, "0")) for c in spec.get("containers") or ())


def _sysctl_namespace(name: str) -> str:
    name = name.replace("/", ".")
    if name.startswith("net."):
        return "net"
    return "ipc" if name in ("kernel.sem",) or name.startswith(("kernel.shm", "kernel.msg", "fs.mqueue.")) else ""


def _security_context(context: Object, spec: Object, at: str) -> Errors:
    errors = [e for key in ("fsGroup", "runAsUser", "runAsGroup") for e in containers.user_id(context.get(key), f"{at}.{key}")]
    for i, group in enumerate(context.get("supplementalGroups") or ()):
        errors += containers.user_id(group, f"{at}.supplementalGroups[{i}]")
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        errors.append(invalid_value(f"{at}.shareProcessNamespace", True, "ShareProcessNamespace and HostPID cannot both be enabled"))
    names: set[str] = set()
    for i, sysctl in enumerate(context.get("sysctls") or ()):
        name = sysctl.get("name") or ""
        here = f"{at}.sysctls[{i}].name"
        if not name:
            errors.append(required(here))
        elif len(name) > 253 or not _SYSCTL.fullmatch(name):
            errors.append(invalid_value(here, name, f"must have at most 253 characters and match regex ^{_SYSCTL.pattern}$"))
        elif name in names:
            errors.append(duplicate(here, name))
        names.add(name)
        namespace = _sysctl_namespace(name)
        if spec.get("hostNetwork") and namespace == "net":
            errors.append(invalid_value(here, name, "may not be specified when 'hostNetwork' is true"))
        if spec.get("hostIPC") and namespace == "ipc":
            errors.append(invalid_value(here, name, "may not be specified when 'hostIPC' is true"))
    if context.get("fsGroupChangePolicy") is not None and context["fsGroupChangePolicy"] not in ("Always", "OnRootMismatch"):
        errors.append(not_supported(f"{at}.fsGroupChangePolicy", context["fsGroupChangePolicy"], ("Always", "OnRootMismatch")))
    errors += containers.seccomp(context.get("seccompProfile"), f"{at}.seccompProfile")
    errors += containers.windows_options(context.get("windowsOptions"), f"{at}.windowsOptions")
    errors += containers.apparmor(context.get("appArmorProfile"), f"{at}.appArmorProfile")
    for key, options in (("supplementalGroupsPolicy", ("Merge", "Strict")), ("seLinuxChangePolicy", ("MountOption", "Recursive"))):
        if context.get(key) is not None and context[key] not in options:
            errors.append(not_supported(f"{at}.{key}", context[key], options))
    return errors


# ---- affinity


def affinity(value: Object, at: str) -> Errors:
    errors: Errors = []
    node = value.get("nodeAffinity")
    if node:
        if node.get("requiredDuringSchedulingIgnoredDuringExecution") is not None:
            errors += node_selector(node["requiredDuringSchedulingIgnoredDuringExecution"], f"{at}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution")
        for i, term in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            here = f"{at}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{i}]"
            errors += _weight(term, here)
            errors += node_selector_term(term.get("preference") or {}, f"{here}.preference")
    for key in ("podAffinity", "podAntiAffinity"):
        pod = value.get(key)
        if pod:
            for i, term in enumerate(pod.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
                errors += _pod_affinity_term(term, f"{at}.{key}.requiredDuringSchedulingIgnoredDuringExecution[{i}]")
            for i, term in enumerate(pod.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
                here = f"{at}.{key}.preferredDuringSchedulingIgnoredDuringExecution[{i}]"
                errors += _weight(term, here)
                errors += _pod_affinity_term(term.get("podAffinityTerm") or {}, f"{here}.podAffinityTerm")
    return errors


def _weight(term: Object, at: str) -> Errors:
    weight = term.get("weight", 0)
    return [] if 1 <= weight <= 100 else [invalid_value(f"{at}.weight", weight, "must be in the range 1-100")]


def node_selector(selector: Object, at: str) -> Errors:
    terms = selector.get("nodeSelectorTerms")
    if not terms:
        return [required(f"{at}.nodeSelectorTerms", "must have at least one node selector term")]
    return [e for i, term in enumerate(terms) for e in node_selector_term(term, f"{at}.nodeSelectorTerms[{i}]")]


def node_selector_term(term: Object, at: str) -> Errors:
    errors: Errors = []
    for i, expression in enumerate(term.get("matchExpressions") or ()):
        errors += _node_requirement(expression, f"{at}.matchExpressions[{i}]")
    for i, expression in enumerate(term.get("matchFields") or ()):
        errors += _node_field(expression, f"{at}.matchFields[{i}]")
    return errors


def _node_requirement(expression: Object, at: str) -> Errors:
    operator, values, key = expression.get("operator") or "", expression.get("values") or [], expression.get("key") or ""
    errors: Errors = []
    if operator in ("In", "NotIn"):
        if not values:
            errors.append(required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            errors.append(forbidden_field(f"{at}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
    elif operator in ("Gt", "Lt"):
        if len(values) != 1:
            errors.append(required(f"{at}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'"))
    else:
        errors.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
    errors += rule(formats.qualified_name, key, f"{at}.key")
    return errors + [e for i, value in enumerate(values) for e in rule(formats.label_value, value, f"{at}.values[{i}]")]


def _node_field(expression: Object, at: str) -> Errors:
    operator, values, key = expression.get("operator") or "", expression.get("values") or [], expression.get("key") or ""
    errors: Errors = []
    if operator in ("In", "NotIn"):
        if len(values) != 1:
            errors.append(required(f"{at}.values", "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"))
    else:
        errors.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
    if key != "metadata.name":
        return [*errors, invalid_value(f"{at}.key", key, "not a valid field selector key")]
    return errors + [e for i, value in enumerate(values) for e in rule(formats.subdomain, value, f"{at}.values[{i}]")]


def _pod_affinity_term(term: Object, at: str) -> Errors:
    selector = term.get("labelSelector")
    errors = label_selector(selector, f"{at}.labelSelector")
    errors += label_selector(term.get("namespaceSelector"), f"{at}.namespaceSelector")
    for key in ("matchLabelKeys", "mismatchLabelKeys"):
        keys = term.get(key) or []
        if keys and selector is None:
            errors.append(forbidden_field(f"{at}.{key}", "must not be specified when labelSelector is not set"))
        for i, name in enumerate(keys):
            errors += rule(formats.qualified_name, name, f"{at}.{key}[{i}]")
            if key == "matchLabelKeys" and name in (term.get("mismatchLabelKeys") or ()):
                errors.append(invalid_value(f"{at}.matchLabelKeys[{i}]", name, "exists in both matchLabelKeys and mismatchLabelKeys"))
    for name in term.get("namespaces") or ():
        errors += rule(formats.label, name, f"{at}.namespace")
    topology = term.get("topologyKey")
    if not topology:
        errors.append(required(f"{at}.topologyKey", "can not be empty"))
    return errors + rule(formats.qualified_name, topology or "", f"{at}.topologyKey")


# ---- the rest of scheduling


def tolerations(listed: list[Object], field: str) -> Errors:
    errors: Errors = []
    for i, toleration in enumerate(listed):
        at = f"{field}[{i}]"
        key, operator, value, effect = (toleration.get(k) or "" for k in ("key", "operator", "value", "effect"))
        if key:
            if bad := formats.qualified_name(key):
                errors += [invalid_value(f"{at}.key", key, m) for m in bad]
        elif operator != "Exists":
            errors.append(invalid_value(f"{at}.operator", operator, 'operator must be Exists when `key` is empty, which means "match all values and all keys"'))
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            errors.append(invalid_value(f"{at}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
        if operator in ("Equal", ""):
            if bad := formats.label_value(value):
                errors.append(invalid_value(f"{at}.operator", value, ";".join(bad)))
        elif operator == "Exists":
            if value:
                errors.append(invalid_value(f"{at}.operator", toleration, "value must be empty when `operator` is 'Exists'"))
        else:
            errors.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists")))
        if effect and effect not in TAINT_EFFECTS:
            errors.append(not_supported(f"{at}.effect", effect, TAINT_EFFECTS))
    return errors


def _scheduling_gates(gates: list[Object], field: str) -> Errors:
    errors: Errors = []
    seen: set[str] = set()
    for i, gate in enumerate(gates):
        name = gate.get("name") or ""
        errors += rule(formats.qualified_name, name, f"{field}[{i}].name")
        if name in seen:
            errors.append(duplicate(f"{field}[{i}]", name))
        seen.add(name)
    return errors


def _spread(constraints: list[Object], field: str) -> Errors:
    errors: Errors = []
    for i, constraint in enumerate(constraints):
        at = f"{field}[{i}]"
        skew, key, action = constraint.get("maxSkew", 0), constraint.get("topologyKey") or "", constraint.get("whenUnsatisfiable") or ""
        if skew <= 0:
            errors.append(invalid_value(f"{at}.maxSkew", skew, NOT_POSITIVE))
        if not key:
            errors.append(required(f"{at}.topologyKey", "can not be empty"))
        elif bad := formats.qualified_name(key):
            errors += [invalid_value(f"{at}.topologyKey", key, m) for m in bad]
        if action not in ("DoNotSchedule", "ScheduleAnyway"):
            errors.append(not_supported(f"{at}.whenUnsatisfiable", action, ("DoNotSchedule", "ScheduleAnyway")))
        if any(c.get("topologyKey") == key and c.get("whenUnsatisfiable") == action for c in constraints[i + 1 :]):
            errors.append(duplicate(f"{at}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {action}}}"))
        domains = constraint.get("minDomains")
        if domains is not None:
            if domains <= 0:
                errors.append(invalid_value(f"{at}.minDomains", domains, NOT_POSITIVE))
            if action != "DoNotSchedule":
                errors.append(invalid_value(f"{at}.minDomains", domains, f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"))
        for policy in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            value = constraint.get(policy)
            if value is not None and value not in ("Honor", "Ignore"):
                errors.append(not_supported(f"{at}.{policy}", value, ("Honor", "Ignore")))
        selector = constraint.get("labelSelector")
        errors += _match_label_keys(constraint.get("matchLabelKeys") or [], selector, f"{at}.matchLabelKeys")
        errors += label_selector(selector, f"{at}.labelSelector")
    return errors


def _match_label_keys(keys: list[str], selector: Object | None, at: str) -> Errors:
    if keys and selector is None:
        return [forbidden_field(at, "must not be specified when labelSelector is not set")]
    fixed = set((selector or {}).get("matchLabels") or ()) | {e.get("key") for e in (selector or {}).get("matchExpressions") or ()}
    errors: Errors = []
    for i, key in enumerate(keys):
        errors += rule(formats.qualified_name, key, f"{at}[{i}]")
        if key in fixed:
            errors.append(invalid_value(f"{at}[{i}]", key, "exists in both matchLabelKeys and labelSelector"))
    return errors


def _dns_config(config: Object | None, policy: str | None, at: str) -> Errors:
    if policy == "None":
        if config is None:
            return [required(at, "must provide `dnsConfig` when `dnsPolicy` is None")]
        if not config.get("nameservers"):
            return [required(f"{at}.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None")]
    if config is None:
        return []
    errors: Errors = []
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if len(servers) > 3:
        errors.append(invalid_value(f"{at}.nameservers", servers, "must not have more than 3 nameservers"))
    for i, server in enumerate(servers):
        if formats.sloppy_ip(server) is None:
            errors.append(invalid_value(f"{at}.nameservers[{i}]", server, "must be valid IP address"))
    if len(searches) > 32:
        errors.append(invalid_value(f"{at}.searches", searches, "must not have more than 32 search paths"))
    if len(" ".join(searches).encode()) > 2048:
        errors.append(invalid_value(f"{at}.searches", searches, "must not have more than 2048 characters (including spaces) in the search list"))
    for i, search in enumerate(searches):
        if search == ".":
            continue
        bare = search.removesuffix(".")
        # Labels may have underscores here, as resolvers allow.
        if not re.fullmatch(r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*", bare):
            errors += rule(formats.subdomain, bare, f"{at}.searches[{i}]")
    for i, option in enumerate(config.get("options") or ()):
        if not option.get("name"):
            errors.append(required(f"{at}.options[{i}]", "must not be empty"))
    return errors


_NOT_ON_WINDOWS_POD = (
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
)
_NOT_ON_WINDOWS = (
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
)


def _os(spec: Object, at: str) -> Errors:
    name = spec["os"].get("name") or ""
    if not name:
        return [required(f"{at}.os.name", "cannot be empty")]
    if name not in ("linux", "windows"):
        return [not_supported(f"{at}.os", name, ("linux", "windows"))]
    text = f"cannot be set for a {'windows' if name == 'windows' else 'linux'} pod"
    errors: Errors = []
    pod = spec.get("securityContext") or {}
    listed = [(f"{at}.{key}[{i}]", c) for key in ("containers", "initContainers", "ephemeralContainers") for i, c in enumerate(spec.get(key) or ())]
    if name == "linux":
        places = [(f"{at}.securityContext", pod)] + [(f"{p}.securityContext", c.get("securityContext") or {}) for p, c in listed]
        return [
            forbidden_field(f"{p}.windowsOptions", "windows options cannot be set for a linux pod") for p, c in places if c.get("windowsOptions") is not None
        ]
    errors += [forbidden_field(f"{at}.{k}", text) for k in ("hostPID", "hostIPC") if spec.get(k)]
    errors += [forbidden_field(f"{at}.securityContext.{k}", text) for k in _NOT_ON_WINDOWS_POD if pod.get(k) is not None]
    if spec.get("hostUsers") is not None:
        errors.append(forbidden_field(f"{at}.hostUsers", text))
    if spec.get("shareProcessNamespace"):
        errors.append(forbidden_field(f"{at}.shareProcessNamespace", text))
    for place, container in listed:
        errors += [
            forbidden_field(f"{place}.securityContext.{k}", text) for k in _NOT_ON_WINDOWS if (container.get("securityContext") or {}).get(k) is not None
        ]
    return errors


def template(value: Object | None, at: str) -> Errors:
    """A PodTemplateSpec: its labels and annotations, its spec."""
    from fastkube.api.meta import validate_annotations

    value = value or {}
    meta = value.get("metadata") or {}
    errors = validate_labels(meta.get("labels"), f"{at}.labels")
    errors += validate_annotations(meta.get("annotations"), f"{at}.annotations")
    spec = value.get("spec") or {}
    errors += validate(spec, {}, f"{at}.spec")
    if spec.get("ephemeralContainers"):
        errors.append(forbidden_field(f"{at}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template"))
    return errors


__all__ = ["affinity", "node_selector", "node_selector_term", "nonnegative", "template", "tolerations", "validate"]
