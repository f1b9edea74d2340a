"""The Pod Security Standards (KEP-2579) as pure functions on pod specs, with upstream's words.

`violations(level, version, meta, spec)` -> [(reason, detail)] in upstream's order: baseline checks by id, then restricted ones, where a restricted check
replaces the baseline check of the same matter. `version` is a Kubernetes minor number (LATEST: the newest): a policy of an old version is judged as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Object = dict[str, Any]
Violation = tuple[str, str]
Check = Callable[[Object, Object, int], Violation | None]  # (pod metadata, pod spec, minor version)

LATEST = 10**6
PRIVILEGED, BASELINE, RESTRICTED = "privileged", "baseline", "restricted"
LEVELS = (PRIVILEGED, BASELINE, RESTRICTED)


def violations(level: str, version: int, meta: Object, spec: Object) -> list[Violation]:
    if level == PRIVILEGED:
        return []
    checks: Iterable[Check] = _BASELINE if level == BASELINE else _RESTRICTED
    return [v for v in (check(meta, spec, version) for check in checks) if v is not None]


def describe(found: list[Violation]) -> str:
    """`reason (detail), reason (detail)`."""
    return ", ".join(f"{reason} ({detail})" if detail else reason for reason, detail in found)


# -- looking ----------------------------------------------------------------------------------------------------------------------------------


def _containers(spec: Object) -> Iterator[Object]:
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field) or ()


def _context(holder: Object) -> Object:
    return holder.get("securityContext") or {}


def _quoted(values: Iterable[str]) -> str:
    return ", ".join(f'"{v}"' for v in values)


def _plural(one: str, many: str, count: int) -> str:
    return one if count == 1 else many


def _named(names: list[str]) -> str:
    return f"{_plural('container', 'containers', len(names))} {_quoted(names)}"


def _setters(spec: Object, bad: Callable[[Object], bool]) -> str:
    """Who has a security context that is bad: `pod and containers "a", "b"`; "" for nobody."""
    names = [c["name"] for c in _containers(spec) if bad(_context(c))]
    return " and ".join([*(["pod"] if bad(_context(spec)) else []), *([_named(names)] if names else [])])


def _windows(spec: Object, version: int) -> bool:
    """Since 1.25 pods that say they run Windows are spared what Windows knows nothing of."""
    return version >= 25 and (spec.get("os") or {}).get("name") == "windows"


def _own_users(spec: Object, version: int) -> bool:
    """Root in a user namespace is nobody outside of it (KEP-127)."""
    return version >= 35 and spec.get("hostUsers") is False


# -- baseline ---------------------------------------------------------------------------------------------------------------------------------


def _apparmor(meta: Object, spec: Object, version: int) -> Violation | None:
    def bad(context: Object) -> bool:
        return (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost")

    found = []
    setters = _setters(spec, bad)
    if setters:
        types = sorted({h["appArmorProfile"]["type"] for h in (_context(spec), *map(_context, _containers(spec))) if bad(h)})
        found.append(f"{setters} must not set AppArmor profile type to {_quoted(types)}")
    prefix = "container.apparmor.security.beta.kubernetes.io/"
    annotations = (meta.get("annotations") or {}).items()
    found += sorted(f'{k}="{v}"' for k, v in annotations if k.startswith(prefix) and v and v != "runtime/default" and not v.startswith("localhost/"))
    return (_plural("forbidden AppArmor profile", "forbidden AppArmor profiles", len(found)), ", ".join(found)) if found else None


_DEFAULT_CAPABILITIES = frozenset(
    ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT")
)


def _added(container: Object) -> list[str]:
    return (_context(container).get("capabilities") or {}).get("add") or []


def _capabilities_baseline(meta: Object, spec: Object, version: int) -> Violation | None:
    names = [c["name"] for c in _containers(spec) if any(a not in _DEFAULT_CAPABILITIES for a in _added(c))]
    if not names:
        return None
    bad = sorted({a for c in _containers(spec) for a in _added(c)} - _DEFAULT_CAPABILITIES)
    return "non-default capabilities", f"{_named(names)} must not include {_quoted(bad)} in securityContext.capabilities.add"


def _host_namespaces(meta: Object, spec: Object, version: int) -> Violation | None:
    found = [f"{field}=true" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    return ("host namespaces", ", ".join(found)) if found else None


def _host_path(meta: Object, spec: Object, version: int) -> Violation | None:
    names = [v["name"] for v in spec.get("volumes") or () if v.get("hostPath") is not None]
    return ("hostPath volumes", f"{_plural('volume', 'volumes', len(names))} {_quoted(names)}") if names else None


def _host_ports(meta: Object, spec: Object, version: int) -> Violation | None:
    names = [c["name"] for c in _containers(spec) if any(p.get("hostPort") for p in c.get("ports") or ())]
    if not names:
        return None
    ports = sorted({str(p["hostPort"]) for c in _containers(spec) for p in c.get("ports") or () if p.get("hostPort")})
    uses = _plural("uses", "use", len(names))
    return "hostPort", f"{_named(names)} {uses} {_plural('hostPort', 'hostPorts', len(ports))} {', '.join(ports)}"


def _hosts(container: Object) -> set[str]:
    lifecycle = container.get("lifecycle") or {}
    handlers = [
        *(container.get(p) or {} for p in ("livenessProbe", "readinessProbe", "startupProbe")),
        *(lifecycle.get(h) or {} for h in ("postStart", "preStop")),
    ]
    hosts = [(h.get(action) or {}).get("host") for h in handlers for action in ("httpGet", "tcpSocket")]
    return {host for host in hosts if host}


def _host_probes(meta: Object, spec: Object, version: int) -> Violation | None:
    if version < 34:
        return None
    names = sorted(c["name"] for c in _containers(spec) if _hosts(c))
    if not names:
        return None
    hosts = sorted(set().union(*map(_hosts, _containers(spec))))
    what = _plural("probe or lifecycle host", "probe or lifecycle hosts", len(hosts))
    return "probe or lifecycle host", f"{_named(names)} {_plural('uses', 'use', len(names))} {what} {_quoted(hosts)}"


def _privileged(meta: Object, spec: Object, version: int) -> Violation | None:
    names = [c["name"] for c in _containers(spec) if _context(c).get("privileged")]
    return ("privileged", f"{_named(names)} must not set securityContext.privileged=true") if names else None


def _proc_mount(meta: Object, spec: Object, version: int) -> Violation | None:
    if _own_users(spec, version):
        return None
    names = [c["name"] for c in _containers(spec) if _context(c).get("procMount", "Default") != "Default"]
    if not names:
        return None
    types = sorted({_context(c)["procMount"] for c in _containers(spec) if _context(c).get("procMount", "Default") != "Default"})
    return "procMount", f"{_named(names)} must not set securityContext.procMount to {_quoted(types)}"


def _selinux(meta: Object, spec: Object, version: int) -> Violation | None:
    allowed = {None, "", "container_t", "container_init_t", "container_kvm_t"} | ({"container_engine_t"} if version >= 31 else set())

    def options(context: Object) -> Object:
        return context.get("seLinuxOptions") or {}

    setters = _setters(spec, lambda c: options(c).get("type") not in allowed or bool(options(c).get("user")) or bool(options(c).get("role")))
    if not setters:
        return None
    every = [options(_context(h)) for h in (spec, *_containers(spec))]
    types = sorted({o["type"] for o in every if o.get("type") not in allowed})
    bad = [f"{_plural('type', 'types', len(types))} {_quoted(types)}"] if types else []
    bad += [f"{field} may not be set" for field in ("user", "role") if any(o.get(field) for o in every)]
    return "seLinuxOptions", f"{setters} set forbidden securityContext.seLinuxOptions: {'; '.join(bad)}"


def _seccomp_bad(context: Object) -> bool:
    profile = context.get("seccompProfile")
    return profile is not None and profile.get("type") not in ("RuntimeDefault", "Localhost")


def _seccomp_explicit(spec: Object) -> Violation | None:
    setters = _setters(spec, _seccomp_bad)
    if not setters:
        return None
    types = sorted({_context(h)["seccompProfile"].get("type", "") for h in (spec, *_containers(spec)) if _seccomp_bad(_context(h))})
    return "seccompProfile", f"{setters} must not set securityContext.seccompProfile.type to {_quoted(types)}"


def _seccomp_baseline(meta: Object, spec: Object, version: int) -> Violation | None:
    if version >= 19:
        return _seccomp_explicit(spec)
    keys = ["seccomp.security.alpha.kubernetes.io/pod", *(f"container.seccomp.security.alpha.kubernetes.io/{c['name']}" for c in _containers(spec))]
    annotations = meta.get("annotations") or {}
    bad = sorted(
        {
            f'{k}="{annotations[k]}"'
            for k in keys
            if k in annotations and annotations[k] not in ("runtime/default", "docker/default") and not annotations[k].startswith("localhost/")
        }
    )
    return ("seccompProfile", f"forbidden {_plural('annotation', 'annotations', len(bad))} {', '.join(bad)}") if bad else None


_SYSCTLS = {
    0: (
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
    ),
    27: ("net.ipv4.ip_local_reserved_ports",),
    29: ("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"),
    32: ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}


def _sysctls(meta: Object, spec: Object, version: int) -> Violation | None:
    allowed = {name for since, names in _SYSCTLS.items() if version >= since for name in names}
    bad = [s["name"] for s in _context(spec).get("sysctls") or () if s["name"] not in allowed]
    return ("forbidden sysctls", ", ".join(bad)) if bad else None


def _host_process(meta: Object, spec: Object, version: int) -> Violation | None:
    setters = _setters(spec, lambda c: bool((c.get("windowsOptions") or {}).get("hostProcess")))
    return ("hostProcess", f"{setters} must not set securityContext.windowsOptions.hostProcess=true") if setters else None


# -- restricted -------------------------------------------------------------------------------------------------------------------------------


def _privilege_escalation(meta: Object, spec: Object, version: int) -> Violation | None:
    if version < 8 or _windows(spec, version):
        return None
    names = [c["name"] for c in _containers(spec) if _context(c).get("allowPrivilegeEscalation") is not False]
    return ("allowPrivilegeEscalation != false", f"{_named(names)} must set securityContext.allowPrivilegeEscalation=false") if names else None


def _capabilities_restricted(meta: Object, spec: Object, version: int) -> Violation | None:
    if version < 22:
        return _capabilities_baseline(meta, spec, version)
    if _windows(spec, version):
        return None
    undropped = [c["name"] for c in _containers(spec) if "ALL" not in ((_context(c).get("capabilities") or {}).get("drop") or ())]
    adding = [c["name"] for c in _containers(spec) if any(a != "NET_BIND_SERVICE" for a in _added(c))]
    found = []
    if undropped:
        found.append(f'{_named(undropped)} must set securityContext.capabilities.drop=["ALL"]')
    if adding:
        bad = sorted({a for c in _containers(spec) for a in _added(c)} - {"NET_BIND_SERVICE"})
        found.append(f"{_named(adding)} must not include {_quoted(bad)} in securityContext.capabilities.add")
    return ("unrestricted capabilities", "; ".join(found)) if found else None


_VOLUMES = frozenset(("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"))


def _volume_types(meta: Object, spec: Object, version: int) -> Violation | None:
    names, types = [], set()
    for volume in spec.get("volumes") or ():
        kinds = [k for k in volume if k != "name" and volume[k] is not None]
        if not any(k in _VOLUMES for k in kinds):
            names.append(volume["name"])
            types.update(kinds or ["unknown"])
    if not names:
        return None
    uses = _plural("uses", "use", len(names))
    what = _plural("restricted volume type", "restricted volume types", len(types))
    return "restricted volume types", f"{_plural('volume', 'volumes', len(names))} {_quoted(names)} {uses} {what} {_quoted(sorted(types))}"


def _non_root(meta: Object, spec: Object, version: int) -> Violation | None:
    if _own_users(spec, version):
        return None
    setters = _setters(spec, lambda c: c.get("runAsNonRoot") is False)
    if setters:
        return "runAsNonRoot != true", f"{setters} must not set securityContext.runAsNonRoot=false"
    if _context(spec).get("runAsNonRoot"):
        return None
    names = [c["name"] for c in _containers(spec) if _context(c).get("runAsNonRoot") is None]
    return ("runAsNonRoot != true", f"pod or {_named(names)} must set securityContext.runAsNonRoot=true") if names else None


def _root_user(meta: Object, spec: Object, version: int) -> Violation | None:
    if version < 23 or _own_users(spec, version):
        return None
    setters = _setters(spec, lambda c: c.get("runAsUser") == 0)
    return ("runAsUser=0", f"{setters} must not set runAsUser=0") if setters else None


def _seccomp_restricted(meta: Object, spec: Object, version: int) -> Violation | None:
    if version < 19:
        return _seccomp_baseline(meta, spec, version)
    if _windows(spec, version):
        return None
    explicit = _seccomp_explicit(spec)
    if explicit or _context(spec).get("seccompProfile") is not None:
        return explicit
    names = [c["name"] for c in _containers(spec) if _context(c).get("seccompProfile") is None]
    return ("seccompProfile", f'pod or {_named(names)} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"') if names else None


_BASELINE: tuple[Check, ...] = (
    _apparmor, _capabilities_baseline, _host_namespaces, _host_path, _host_ports, _host_probes, _privileged, _proc_mount, _selinux, _seccomp_baseline,
    _sysctls, _host_process,
)  # fmt: skip
_REPLACED = (_capabilities_baseline, _host_path, _seccomp_baseline)
_RESTRICTED: tuple[Check, ...] = (
    *(c for c in _BASELINE if c not in _REPLACED),
    _privilege_escalation, _capabilities_restricted, _volume_types, _non_root, _root_user, _seccomp_restricted,
)  # fmt: skip
