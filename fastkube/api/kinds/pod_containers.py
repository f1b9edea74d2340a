"""Validation of containers: of pods, templates, init and ephemeral ones (upstream: validateContainers and what it calls)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fastkube.api import formats, quantity
from fastkube.api.errors import duplicate, forbidden_field, invalid_value, not_found_field, not_supported, required
from fastkube.api.kinds.common import NEGATIVE, Errors, enum, extended_resource, native_resource, nonnegative, resource_quantity, rule
from fastkube.api.kinds.pod_volumes import field_selector, local_path, relative_path, resource_selector

Object = dict[str, Any]
Volumes = dict[str, Object]

PROTOCOLS = ("SCTP", "TCP", "UDP")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_ENV_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_STANDARD = frozenset({"cpu", "memory", "ephemeral-storage"})
_OTHER_STANDARD = frozenset({
    "requests.cpu", "requests.memory", "requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage", "pods", "services", "replicationcontrollers",
    "resourcequotas", "secrets", "configmaps", "persistentvolumeclaims", "storage", "requests.storage", "services.nodeports", "services.loadbalancers",
})  # fmt: skip
RESTART_POLICIES = ("Always", "Never", "OnFailure")


class Context:
    """What the containers of one pod spec are checked against."""

    __slots__ = ("claims", "grace", "host_users", "os", "restart_policy", "volumes")

    def __init__(self, spec: Object, volumes: Volumes) -> None:
        self.volumes = volumes
        self.claims = {c.get("name") for c in spec.get("resourceClaims") or ()}
        self.os = (spec.get("os") or {}).get("name")
        self.grace = spec.get("terminationGracePeriodSeconds") or 0
        self.restart_policy = spec.get("restartPolicy")
        self.host_users = spec.get("hostUsers") is not False


def containers(spec: Object, context: Context, field: str) -> Errors:
    """The `containers` of a pod spec."""
    listed = spec.get("containers")
    if not listed:
        return [required(field)]
    errors: Errors = []
    names: set[str] = set()
    for i, container in enumerate(listed):
        at = f"{field}[{i}]"
        _container(container, context, at, errors)
        name = container.get("name") or ""
        if name in names and name:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        if container.get("lifecycle"):
            errors += _lifecycle(container["lifecycle"], context.grace, f"{at}.lifecycle")
        _probes(container, context.grace, at, errors)
        _restart(container, at, errors)
    errors += _host_ports(listed, field, {})
    return errors


def init_containers(spec: Object, context: Context, field: str) -> Errors:
    """The `initContainers`; those that restart always are sidecars and may have what containers have."""
    errors: Errors = []
    others = {c.get("name") for c in spec.get("containers") or ()}
    names: set[Any] = set()
    for i, container in enumerate(spec.get("initContainers") or ()):
        at = f"{field}[{i}]"
        _container(container, context, at, errors)
        name = container.get("name") or ""
        if name in names or name in others:
            errors.append(duplicate(f"{at}.name", name))
        elif name:
            names.add(name)
        _restart(container, at, errors)
        if container.get("restartPolicy") == "Always":
            if container.get("lifecycle"):
                errors += _lifecycle(container["lifecycle"], context.grace, f"{at}.lifecycle")
            _probes(container, context.grace, at, errors)
        else:
            for key in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
                if container.get(key) is not None:
                    errors.append(forbidden_field(f"{at}.{key}", "may not be set for init containers without restartPolicy=Always"))
        errors += _host_ports([container], field, {})
    return errors


_EPHEMERAL_ALLOWED = frozenset({
    "name", "image", "command", "args", "workingDir", "envFrom", "env", "volumeMounts", "volumeDevices", "terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy",
    "securityContext", "stdin", "stdinOnce", "tty", "targetContainerName",
})  # fmt: skip


def ephemeral_containers(spec: Object, context: Context, field: str) -> Errors:
    errors: Errors = []
    taken = {c.get("name") for key in ("containers", "initContainers") for c in spec.get(key) or ()}
    others = set(taken)
    for i, container in enumerate(spec.get("ephemeralContainers") or ()):
        at = f"{field}[{i}]"
        _container(container, context, at, errors)
        name = container.get("name") or ""
        if name in taken and name:
            errors.append(duplicate(f"{at}.name", name))
        taken.add(name)
        target = container.get("targetContainerName")
        if target and target not in others:
            errors.append(not_found_field(f"{at}.targetContainerName", target))
        for key, value in container.items():
            if key not in _EPHEMERAL_ALLOWED and value not in (None, {}, [], ""):
                errors.append(forbidden_field(f"{at}.{key}", "cannot be set for an Ephemeral Container"))
        for j, mount in enumerate(container.get("volumeMounts") or ()):
            if mount.get("subPath"):
                errors.append(forbidden_field(f"{at}.volumeMounts[{j}].subPath", "cannot be set for an Ephemeral Container"))
            if mount.get("subPathExpr"):
                errors.append(forbidden_field(f"{at}.volumeMounts[{j}].subPathExpr", "cannot be set for an Ephemeral Container"))
    return errors


def _container(container: Object, context: Context, at: str, errors: Errors) -> None:
    """What all containers have in common."""
    name = container.get("name")
    if not name:
        errors.append(required(f"{at}.name"))
    elif bad := formats.label(name):
        errors += [invalid_value(f"{at}.name", name, m) for m in bad]
    image = container.get("image")
    if not image:
        errors.append(required(f"{at}.image"))
    policy = container.get("terminationMessagePolicy")
    if policy not in ("File", "FallbackToLogsOnError"):
        text = "must be 'File' or 'FallbackToLogsOnError'"
        errors.append(invalid_value(f"{at}.terminationMessagePolicy", policy, text) if policy else required(f"{at}.terminationMessagePolicy", text))
    if "ports" in container:
        _ports(container["ports"], f"{at}.ports", errors)
    if "env" in container:
        _env(container["env"], f"{at}.env", errors)
    if "envFrom" in container:
        _env_from(container["envFrom"], f"{at}.envFrom", errors)
    if "volumeMounts" in container:
        _mounts(container, context.volumes, f"{at}.volumeMounts", errors)
    if "volumeDevices" in container:
        _devices(container, context.volumes, f"{at}.volumeDevices", errors)
    if container.get("imagePullPolicy") not in PULL_POLICIES:
        errors += enum(container.get("imagePullPolicy"), f"{at}.imagePullPolicy", PULL_POLICIES)
    if container.get("resources"):
        errors += resources(container["resources"], context.claims, f"{at}.resources")
    if "resizePolicy" in container:
        _resize(container["resizePolicy"], context.restart_policy, f"{at}.resizePolicy", errors)
    if container.get("securityContext"):
        errors += security_context(container["securityContext"], context.host_users, f"{at}.securityContext")


def _restart(container: Object, at: str, errors: Errors) -> None:
    """restartPolicy and restartPolicyRules of a container."""
    policy = container.get("restartPolicy")
    if policy is not None and policy not in RESTART_POLICIES:
        errors.append(not_supported(f"{at}.restartPolicy", policy, RESTART_POLICIES))
    rules = container.get("restartPolicyRules")
    if not rules:
        return
    if policy is None:
        errors.append(required(f"{at}.restartPolicy", "must specify restartPolicy when restart rules are used"))
    if len(rules) > 20:
        errors.append(invalid_value(f"{at}.restartPolicyRules", len(rules), "must have at most 20 rules"))
    for i, entry in enumerate(rules):
        here = f"{at}.restartPolicyRules[{i}]"
        errors += enum(entry.get("action"), f"{here}.action", ("Restart", "RestartAllContainers"))
        codes = entry.get("exitCodes")
        if codes is None:
            errors.append(required(f"{here}.exitCodes", "must be specified"))
            continue
        errors += enum(codes.get("operator"), f"{here}.exitCodes.operator", ("In", "NotIn"))
        if not codes.get("values"):
            errors.append(invalid_value(f"{here}.exitCodes.values", codes.get("values"), "must specify at least one value"))


def _ports(ports: list[Object] | None, field: str, errors: Errors) -> None:
    names: set[str] = set()
    for i, port in enumerate(ports or ()):
        at = f"{field}[{i}]"
        name = port.get("name")
        if name:
            if bad := formats.port_name(name):
                errors += [invalid_value(f"{at}.name", name, m) for m in bad]
            elif name in names:
                errors.append(duplicate(f"{at}.name", name))
            else:
                names.add(name)
        number = port.get("containerPort") or 0
        if not number:
            errors.append(required(f"{at}.containerPort"))
        elif not 0 < number < 65536:
            errors.append(invalid_value(f"{at}.containerPort", number, formats.in_range(1, 65535)))
        host = port.get("hostPort") or 0
        if host and not 0 < host < 65536:
            errors.append(invalid_value(f"{at}.hostPort", host, formats.in_range(1, 65535)))
        if port.get("protocol") not in PROTOCOLS:
            errors += enum(port.get("protocol"), f"{at}.protocol", PROTOCOLS)
        if port.get("hostIP") and formats.sloppy_ip(port["hostIP"]) is None:
            errors.append(invalid_value(f"{at}.hostIP", port["hostIP"], "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))


def _host_ports(listed: list[Object], field: str, taken: dict[str, None]) -> Errors:
    """Containers that claim one port of the host twice."""
    errors: Errors = []
    for i, container in enumerate(listed):
        for j, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort"):
                key = f"{port.get('protocol', '')}/{port.get('hostIP', '')}/{port['hostPort']}"
                if key in taken:
                    errors.append(duplicate(f"{field}[{i}].ports[{j}].hostPort", key))
                taken[key] = None
    return errors


def _env(variables: list[Object] | None, field: str, errors: Errors) -> None:
    for i, variable in enumerate(variables or ()):
        name = variable.get("name")
        if not name:
            errors.append(required(f"{field}[{i}].name"))
        elif bad := formats.env_name(name):
            errors += [invalid_value(f"{field}[{i}].name", name, m) for m in bad]
        if variable.get("valueFrom") is not None:
            errors += _value_from(variable, f"{field}[{i}].valueFrom")


def _value_from(variable: Object, at: str) -> Errors:
    errors: Errors = []
    source = variable["valueFrom"]
    count = 0
    if source.get("fieldRef") is not None:
        count += 1
        errors += field_selector(source["fieldRef"], f"{at}.fieldRef", _ENV_FIELDS)
    if source.get("resourceFieldRef") is not None:
        count += 1
        errors += resource_selector(source["resourceFieldRef"], f"{at}.resourceFieldRef", volume=False)
    for key in ("configMapKeyRef", "secretKeyRef"):
        if source.get(key) is not None:
            count += 1
            errors += _key_selector(source[key], f"{at}.{key}")
    if source.get("fileKeyRef") is not None:
        count += 1
        errors += _file_key(source["fileKeyRef"], f"{at}.fileKeyRef")
    if not count:
        errors.append(invalid_value(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
    elif variable.get("value"):
        errors.append(invalid_value(at, "", "may not be specified when `value` is not empty"))
    elif count > 1:
        errors.append(invalid_value(at, "", "may not have more than one field specified at a time"))
    return errors


def _key_selector(ref: Object, at: str) -> Errors:
    errors = rule(formats.subdomain, ref.get("name") or "", f"{at}.name")
    key = ref.get("key") or ""
    return errors + ([required(f"{at}.key")] if not key else rule(formats.config_key, key, f"{at}.key"))


def _file_key(ref: Object, at: str) -> Errors:
    errors: Errors = []
    for key in ("volumeName", "path", "key"):
        value = ref.get(key) or ""
        if not value:
            errors.append(required(f"{at}.{key}"))
        elif key == "volumeName":
            errors += rule(formats.label, value, f"{at}.{key}")
        elif key == "path":
            errors += local_path(value, f"{at}.{key}")
        else:
            errors += rule(formats.env_name, value, f"{at}.{key}")
    return errors


def _env_from(sources: list[Object] | None, field: str, errors: Errors) -> None:
    for i, source in enumerate(sources or ()):
        at = f"{field}[{i}]"
        if source.get("prefix"):
            errors += rule(formats.env_name, source["prefix"], f"{at}.prefix")
        count = 0
        for key in ("configMapRef", "secretRef"):
            ref = source.get(key)
            if ref is not None:
                count += 1
                name = ref.get("name") or ""
                errors += [required(f"{at}.{key}.name")] if not name else rule(formats.subdomain, name, f"{at}.{key}.name")
        if not count:
            errors.append(invalid_value(field, "", "must specify one of: `configMapRef` or `secretRef`"))
        elif count > 1:
            errors.append(invalid_value(field, "", "may not have more than one field specified at a time"))


def _mounts(container: Object, volumes: Volumes, field: str, errors: Errors) -> None:
    devices = {d.get("name"): d.get("devicePath") for d in container.get("volumeDevices") or ()}
    points: set[str] = set()
    for i, mount in enumerate(container["volumeMounts"] or ()):
        name, path = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            errors.append(required(f"{field}[{i}].name"))
        if name not in volumes:
            errors.append(not_found_field(f"{field}[{i}].name", name))
        if not path:
            errors.append(required(f"{field}[{i}].mountPath"))
        if path in points:
            errors.append(invalid_value(f"{field}[{i}].mountPath", path, "must be unique"))
        points.add(path)
        if devices:
            if name in devices:
                errors.append(invalid_value(f"{field}[{i}].name", name, "must not already exist in volumeDevices"))
            if path in devices.values():
                errors.append(invalid_value(f"{field}[{i}].mountPath", path, "must not already exist as a path in volumeDevices"))
        if mount.get("subPath"):
            errors += relative_path(mount["subPath"], f"{field}.subPath")
        if mount.get("subPathExpr"):
            if mount.get("subPath"):
                errors.append(invalid_value(f"{field}[{i}].subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"))
            errors += relative_path(mount["subPathExpr"], f"{field}.subPathExpr")
        if mount.get("mountPropagation") is not None:
            errors += _propagation(mount["mountPropagation"], container, f"{field}.mountPropagation")
        if mount.get("recursiveReadOnly") is not None:
            errors += _recursive(mount, f"{field}.recursiveReadOnly")


def _propagation(value: str, container: Object, at: str) -> Errors:
    supported = ("Bidirectional", "HostToContainer", "None")
    if value not in supported:
        return [not_supported(at, value, supported)]
    if value == "Bidirectional" and not (container.get("securityContext") or {}).get("privileged"):
        return [forbidden_field(at, "Bidirectional mount propagation is available only to privileged containers")]
    return []


def _recursive(mount: Object, at: str) -> Errors:
    value = mount["recursiveReadOnly"]
    if value == "Disabled":
        return []
    if value not in ("Enabled", "IfPossible"):
        return [not_supported(at, value, ("Disabled", "Enabled", "IfPossible"))]
    errors: Errors = []
    if not mount.get("readOnly"):
        errors.append(forbidden_field(at, "may only be specified when readOnly is true"))
    if mount.get("mountPropagation") not in (None, "None"):
        errors.append(forbidden_field(at, "may only be specified when mountPropagation is None or not specified"))
    return errors


def _devices(container: Object, volumes: Volumes, field: str, errors: Errors) -> None:
    mounts = {m.get("name"): m.get("mountPath") for m in container.get("volumeMounts") or ()}
    names: set[str] = set()
    paths: set[str] = set()
    for i, device in enumerate(container["volumeDevices"] or ()):
        at = f"{field}[{i}]"
        name, path = device.get("name") or "", device.get("devicePath") or ""
        if not name:
            errors.append(required(f"{at}.name"))
        if name in names:
            errors.append(invalid_value(f"{at}.name", name, "must be unique"))
        volume = volumes.get(name)
        if volume is not None and volume.get("persistentVolumeClaim") is None and volume.get("ephemeral") is None:
            errors.append(invalid_value(f"{at}.name", name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
        if volume is None:
            errors.append(not_found_field(f"{at}.name", name))
        if not path:
            errors.append(required(f"{at}.devicePath"))
        if path in paths:
            errors.append(invalid_value(f"{at}.devicePath", path, "must be unique"))
        if path and ".." in path.split("/"):
            errors.append(invalid_value(f"{at}.devicePath", path, "can not contain backsteps ('..')"))
        names.add(name)
        paths.add(path)
        if name in mounts:
            errors.append(invalid_value(f"{at}.name", name, "must not already exist in volumeMounts"))
        if path in mounts.values():
            errors.append(invalid_value(f"{at}.devicePath", path, "must not already exist as a path in volumeMounts"))


def _probes(container: Object, grace: int, at: str, errors: Errors) -> None:
    for key in _PROBES:
        probe = container.get(key)
        if probe is None:
            continue
        here = f"{at}.{key}"
        _handler(probe, here, _PROBE_ACTIONS, 0, errors)
        for field in _PROBE_NUMBERS:
            if field in probe and probe[field] < 0:
                errors.append(invalid_value(f"{here}.{field}", probe[field], NEGATIVE))
        seconds = probe.get("terminationGracePeriodSeconds")
        if key == "readinessProbe":
            if seconds is not None:
                errors.append(invalid_value(f"{here}.terminationGracePeriodSeconds", seconds, "must not be set for readinessProbes"))
            continue
        if seconds is not None and seconds <= 0:
            errors.append(invalid_value(f"{here}.terminationGracePeriodSeconds", seconds, "must be greater than 0"))
        if probe.get("successThreshold", 1) != 1:
            errors.append(invalid_value(f"{here}.successThreshold", probe["successThreshold"], "must be 1"))


_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE_NUMBERS = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")


def port_number_or_name(port: Any, at: str) -> Errors:
    if isinstance(port, str):
        return rule(formats.port_name, port, at)
    number = port or 0
    return [] if 0 < number < 65536 else [invalid_value(at, number, formats.in_range(1, 65535))]


def _exec(action: Object, at: str, grace: int) -> Errors:
    return [] if action.get("command") else [required(f"{at}.command")]


def _http_get(action: Object, at: str, grace: int) -> Errors:
    errors: Errors = [] if action.get("path") else [required(f"{at}.path")]
    errors += port_number_or_name(action.get("port"), f"{at}.port")
    if action.get("scheme") not in ("HTTP", "HTTPS"):
        errors.append(not_supported(f"{at}.scheme", action.get("scheme") or "", ("HTTP", "HTTPS")))
    for header in action.get("httpHeaders") or ():
        errors += rule(formats.http_header, header.get("name") or "", f"{at}.httpHeaders")
    return errors


def _port_action(action: Object, at: str, grace: int) -> Errors:
    return port_number_or_name(action.get("port"), f"{at}.port")


def _sleep(action: Object, at: str, grace: int) -> Errors:
    seconds = action.get("seconds", 0)
    return [] if 0 <= seconds <= grace else [invalid_value(at, seconds, f"must be non-negative and less than terminationGracePeriodSeconds ({grace})")]


_PROBE_ACTIONS = {"exec": _exec, "httpGet": _http_get, "tcpSocket": _port_action, "grpc": _port_action}
_HOOK_ACTIONS = {"exec": _exec, "httpGet": _http_get, "tcpSocket": _port_action, "sleep": _sleep}


def _handler(spec: Object, at: str, actions: Mapping[str, Callable[[Object, str, int], Errors]], grace: int, errors: Errors) -> None:
    """Exactly one of `actions`."""
    count = 0
    for key, check in actions.items():
        if key in spec and spec[key] is not None:
            count += 1
            if count > 1:
                errors.append(forbidden_field(f"{at}.{key}", "may not specify more than 1 handler type"))
            else:
                errors += check(spec[key], f"{at}.{key}", grace)
    if not count:
        errors.append(required(at, "must specify a handler type"))


def _lifecycle(lifecycle: Object, grace: int, at: str) -> Errors:
    errors: Errors = []
    for key in ("postStart", "preStop"):
        if lifecycle.get(key) is not None:
            _handler(lifecycle[key], f"{at}.{key}", _HOOK_ACTIONS, grace, errors)
    return errors


def container_resource_name(name: str, at: str) -> Errors:
    errors = _resource_name(name, at)
    if "/" not in name:
        if name not in _STANDARD and not name.startswith("hugepages-"):
            errors.append(invalid_value(at, name, "must be a standard resource for containers"))
    elif not native_resource(name) and not extended_resource(name):
        errors.append(invalid_value(at, name, "doesn't follow extended resource name standard"))
    return errors


def _resource_name(name: str, at: str) -> Errors:
    errors = rule(formats.qualified_name, name, at)
    if errors:
        return errors
    if "/" not in name and name not in _STANDARD and name not in _OTHER_STANDARD and not name.startswith("hugepages-"):
        return [invalid_value(at, name, "must be a standard resource type or fully qualified")]
    return []


resource_name = _resource_name


def resources(requirements: Object, claims: set[Any], at: str, pod_level: bool = False) -> Errors:
    """Requests and limits: known names, whole amounts where they must be, requests within limits."""
    errors: Errors = []
    limits, requests = requirements.get("limits") or {}, requirements.get("requests") or {}
    for amounts, key in ((limits, "limits"), (requests, "requests")):
        for name, amount in amounts.items():
            if name not in _STANDARD:
                errors += container_resource_name(name, f"{at}.{key}[{name}]")
            if amount.startswith("-") or name not in _STANDARD:
                errors += resource_quantity(name, amount, f"{at}.{key}[{name}]")
            if key == "requests":
                errors += _within(name, amount, limits, at)
    names = {*limits, *requests}
    if any(n.startswith("hugepages-") for n in names) and not names & {"cpu", "memory"}:
        errors.append(forbidden_field(at, "HugePages require cpu or memory"))
    if "claims" in requirements:
        errors += _claims(requirements["claims"] or [], claims, f"{at}.claims")
    return errors


def _within(name: str, amount: str, limits: Object, at: str) -> Errors:
    limit = limits.get(name)
    overcommit = name in _STANDARD or (native_resource(name) and not name.startswith("hugepages-"))
    if limit is None:
        return [] if overcommit else [required(f"{at}.limits", "Limit must be set for non overcommitable resources")]
    if amount == limit:
        return []
    difference = quantity.compare(amount, limit)
    if difference and not overcommit:
        return [invalid_value(f"{at}.requests", amount, f"must be equal to {name} limit of {limit}")]
    if difference > 0:
        return [invalid_value(f"{at}.requests", amount, f"must be less than or equal to {name} limit of {limit}")]
    return []


def _claims(refs: list[Object], known: set[Any], at: str) -> Errors:
    errors: Errors = []
    seen: set[str] = set()
    for i, ref in enumerate(refs):
        name, request = ref.get("name") or "", ref.get("request") or ""
        if not name:
            errors.append(required(f"{at}[{i}].name"))
        else:
            key = f"{name}/{request}" if request else name
            if key in seen or (request and name in seen):
                errors.append(duplicate(f"{at}[{i}]", key))
            seen.add(key)
            if request:
                errors += rule(formats.label, request, f"{at}[{i}].request")
            if name not in known:
                errors.append(not_found_field(f"{at}[{i}]", name))
    return errors


def _resize(policies: list[Object] | None, restart_policy: str | None, field: str, errors: Errors) -> None:
    seen: set[str] = set()
    for i, policy in enumerate(policies or ()):
        name, how = policy.get("resourceName") or "", policy.get("restartPolicy") or ""
        if name in seen:
            errors.append(duplicate(f"{field}[{i}]", name))
        seen.add(name)
        if name not in ("cpu", "memory"):
            errors.append(not_supported(f"{field}", name, ("cpu", "memory")) if name else required(f"{field}"))
        if how not in ("NotRequired", "RestartContainer"):
            errors.append(not_supported(f"{field}", how, ("NotRequired", "RestartContainer")) if how else required(f"{field}"))
        if restart_policy == "Never" and how == "RestartContainer":
            errors.append(invalid_value(f"{field}", how, "must be 'NotRequired' when `restartPolicy` is 'Never'"))


def seccomp(profile: Object | None, at: str) -> Errors:
    if profile is None:
        return []
    kind, local = profile.get("type") or "", profile.get("localhostProfile")
    if not kind:
        return [required(f"{at}.type", "type is required when seccompProfile is set")]
    if kind not in ("Localhost", "RuntimeDefault", "Unconfined"):
        return [not_supported(f"{at}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))]
    if kind == "Localhost":
        return (
            [required(f"{at}.localhostProfile", "must be set when seccomp type is Localhost")] if local is None else local_path(local, f"{at}.localhostProfile")
        )
    return [invalid_value(f"{at}.localhostProfile", profile, "can only be set when seccomp type is Localhost")] if local is not None else []


def apparmor(profile: Object | None, at: str) -> Errors:
    if profile is None:
        return []
    kind, local = profile.get("type") or "", profile.get("localhostProfile")
    if not kind:
        return [required(f"{at}.type", "type is required when appArmorProfile is set")]
    if kind not in ("Localhost", "RuntimeDefault", "Unconfined"):
        return [not_supported(f"{at}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))]
    if kind == "Localhost":
        if local is None or not local.strip():
            return [required(f"{at}.localhostProfile", "must be set when AppArmor type is Localhost")]
        if local.strip() != local:
            return [invalid_value(f"{at}.localhostProfile", local, "must not be padded with whitespace")]
        return [FieldTooLong(f"{at}.localhostProfile")] if len(local.encode()) > 4095 else []
    return [invalid_value(f"{at}.localhostProfile", local, "can only be set when AppArmor type is Localhost")] if local is not None else []


def FieldTooLong(at: str) -> Any:
    from fastkube.api.errors import too_long

    return too_long(at, 4095)


def user_id(value: int | None, at: str) -> Errors:
    return [invalid_value(at, value, formats.in_range(0, 2147483647))] if value is not None and not 0 <= value <= 2147483647 else []


def security_context(context: Object, host_users: bool, at: str) -> Errors:
    errors = user_id(context.get("runAsUser"), f"{at}.runAsUser") + user_id(context.get("runAsGroup"), f"{at}.runAsGroup")
    mount = context.get("procMount")
    if mount is not None:
        if mount not in ("Default", "Unmasked"):
            errors.append(not_supported(f"{at}.procMount", mount, ("Default", "Unmasked")))
        elif host_users and mount == "Unmasked":
            errors.append(invalid_value(f"{at}.procMount", mount, "`hostUsers` must be false to use `Unmasked`"))
    errors += seccomp(context.get("seccompProfile"), f"{at}.seccompProfile")
    if context.get("allowPrivilegeEscalation") is False:
        if context.get("privileged"):
            errors.append(invalid_value(at, context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
        for capability in (context.get("capabilities") or {}).get("add") or ():
            if capability == "CAP_SYS_ADMIN":
                errors.append(invalid_value(at, context, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
    errors += windows_options(context.get("windowsOptions"), f"{at}.windowsOptions")
    return errors + apparmor(context.get("appArmorProfile"), f"{at}.appArmorProfile")


_USER_BAD = re.compile(r'["/\\:;|=,+*?<>@\[\]]')
_NETBIOS = re.compile(r'[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}')
_DNS = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*")


def windows_options(options: Object | None, at: str) -> Errors:
    if options is None:
        return []
    errors: Errors = []
    name, spec, user = options.get("gmsaCredentialSpecName"), options.get("gmsaCredentialSpec"), options.get("runAsUserName")
    if name is not None:
        errors += rule(formats.subdomain, name, f"{at}.gmsaCredentialSpecName")
    if spec is not None:
        if not spec:
            errors.append(invalid_value(f"{at}.gmsaCredentialSpec", spec, "gmsaCredentialSpec cannot be an empty string"))
        elif len(spec.encode()) > 64 * 1024:
            errors.append(invalid_value(f"{at}.gmsaCredentialSpec", spec, "gmsaCredentialSpec size must be under 64 KiB"))
    if user is not None:
        errors += _windows_user(user, f"{at}.runAsUserName")
    return errors


def _windows_user(value: str, at: str) -> Errors:
    if not value:
        return [invalid_value(at, value, "runAsUserName cannot be an empty string")]
    errors: Errors = []
    if re.search(r"[\x00-\x1f\x7f]", value):
        errors.append(invalid_value(at, value, "runAsUserName cannot contain control characters"))
    parts = value.split("\\")
    if len(parts) > 2:
        return [*errors, invalid_value(at, value, "runAsUserName cannot contain more than one backslash")]
    user = parts[-1]
    if len(parts) == 2:
        domain = parts[0]
        if len(domain.encode()) >= 256:
            errors.append(invalid_value(at, value, "runAsUserName's Domain length must be under 256 characters"))
        if not (_NETBIOS.fullmatch(domain) or _DNS.fullmatch(domain)):
            errors.append(invalid_value(at, value, "runAsUserName's Domain doesn't match the NetBios nor the DNS format"))
    if not user:
        errors.append(invalid_value(at, value, "runAsUserName's User cannot be empty"))
    elif len(user.encode()) > 104:
        errors.append(invalid_value(at, value, "runAsUserName's User length must not be longer than 104 characters"))
    if user and not user.strip(". "):
        errors.append(invalid_value(at, value, "runAsUserName's User cannot contain only periods or spaces"))
    if _USER_BAD.search(user):
        errors.append(invalid_value(at, value, "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"))
    return errors


def whitespace_in_images(spec: Object, field: str) -> Errors:
    """Pods (not templates) may not have images with spaces around them."""
    return [
        invalid_value(f"{field}.{key}[{i}].image", container["image"], "must not have leading or trailing whitespace")
        for key in ("containers", "initContainers")
        for i, container in enumerate(spec.get(key) or ())
        if container.get("image") and container["image"].strip() != container["image"]
    ]


__all__ = ["Context", "containers", "ephemeral_containers", "init_containers", "nonnegative", "resource_name", "resources"]
