"""From a pod's spec to CRI's messages: sandbox and container configurations. Pure; everything looked up comes in as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from cri_api.v1 import api_pb2 as pb

from fastkube.node import cgroups, env, model, podspec
from fastkube.node.resolv import Dns

Object = dict[str, Any]

# What a container does not get to see or write of /proc and /sys unless it is privileged or asks for procMount Unmasked.
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

OOM_GUARANTEED, OOM_BEST_EFFORT = -997, 1000

_PROTOCOLS: dict[str, Any] = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}
_PROPAGATION: dict[str, Any] = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}


@dataclass(slots=True)
class Mount:
    container_path: str
    host_path: str
    read_only: bool = False
    propagation: str = "None"


@dataclass(slots=True)
class Surroundings:
    """What a container's configuration needs from outside of the pod's spec."""

    image: str  # id of the image, as the runtime knows it
    image_user: int | None = None  # uid the image runs as; None when it names a user
    image_username: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    capacity_memory: float = 0.0
    seccomp_default: bool = False
    seccomp_root: str = ""
    sandbox_id: str = ""  # for targets of ephemeral containers
    target_id: str = ""


def sandbox(pod: Object, attempt: int, hostname: str, log_directory: str, dns: Dns, cgroup_parent: str) -> pb.PodSandboxConfig:
    meta, spec = pod["metadata"], pod["spec"]
    namespace = meta.get("namespace", "default")
    context = spec.get("securityContext") or {}
    security = pb.LinuxSandboxSecurityContext(
        namespace_options=namespaces(pod),
        privileged=any((c.get("securityContext") or {}).get("privileged") for c in podspec.all_containers(pod)),
        supplemental_groups=_groups(pod),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
    )
    if context.get("runAsUser") is not None:
        security.run_as_user.value = context["runAsUser"]
        if context.get("runAsGroup") is not None:
            security.run_as_group.value = context["runAsGroup"]
    linux = pb.LinuxPodSandboxConfig(
        cgroup_parent=cgroup_parent, security_context=security, sysctls={s["name"]: s["value"] for s in context.get("sysctls") or ()}
    )
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=meta["name"], namespace=namespace, uid=meta["uid"], attempt=attempt),
        hostname=hostname,
        log_directory=log_directory,
        dns_config=pb.DNSConfig(servers=dns.servers, searches=dns.searches, options=dns.options),
        port_mappings=[] if podspec.host_network(pod) else list(port_mappings(pod)),
        labels={
            **(meta.get("labels") or {}),
            model.LABEL_POD_NAME: meta["name"],
            model.LABEL_POD_NAMESPACE: namespace,
            model.LABEL_POD_UID: meta["uid"],
        },
        annotations=meta.get("annotations") or {},
        linux=linux,
    )


def namespaces(pod: Object) -> pb.NamespaceOption:
    spec = pod["spec"]
    return pb.NamespaceOption(
        network=pb.NODE if spec.get("hostNetwork") else pb.POD,
        pid=pb.NODE if spec.get("hostPID") else pb.POD if spec.get("shareProcessNamespace") else pb.CONTAINER,
        ipc=pb.NODE if spec.get("hostIPC") else pb.POD,
    )


def port_mappings(pod: Object) -> Sequence[pb.PortMapping]:
    seen = {}
    for container in [*podspec.init_containers(pod), *podspec.containers(pod)]:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                protocol = port.get("protocol", "TCP")
                seen[(port["hostPort"], protocol, port.get("hostIP", ""))] = pb.PortMapping(
                    protocol=_PROTOCOLS.get(protocol, pb.TCP), container_port=port["containerPort"], host_port=port["hostPort"], host_ip=port.get("hostIP", "")
                )
    return list(seen.values())


def container(pod: Object, spec: Object, attempt: int, around: Surroundings) -> pb.ContainerConfig:
    meta = pod["metadata"]
    variables = around.environment
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=spec["name"], attempt=attempt),
        image=pb.ImageSpec(image=around.image, user_specified_image=spec.get("image", "")),
        command=[env.expand(a, variables) for a in spec.get("command") or ()],
        args=[env.expand(a, variables) for a in spec.get("args") or ()],
        working_dir=spec.get("workingDir", ""),
        envs=[pb.KeyValue(key=k, value=v) for k, v in variables.items()],
        mounts=[
            pb.Mount(container_path=m.container_path, host_path=m.host_path, readonly=m.read_only, propagation=_PROPAGATION.get(m.propagation, 0))
            for m in around.mounts
        ],
        labels={
            model.LABEL_POD_NAME: meta["name"],
            model.LABEL_POD_NAMESPACE: meta.get("namespace", "default"),
            model.LABEL_POD_UID: meta["uid"],
            model.LABEL_CONTAINER_NAME: spec["name"],
        },
        annotations=_annotations(pod, spec, attempt),
        log_path=f"{spec['name']}/{attempt}.log",
        stdin=bool(spec.get("stdin")),
        stdin_once=bool(spec.get("stdinOnce")),
        tty=bool(spec.get("tty")),
        linux=pb.LinuxContainerConfig(resources=resources(pod, spec, around.capacity_memory), security_context=security(pod, spec, around)),
    )


def _annotations(pod: Object, spec: Object, attempt: int) -> dict[str, str]:
    out = {
        model.ANNOTATION_HASH: podspec.container_hash(spec),
        model.ANNOTATION_RESTART_COUNT: str(attempt),
        model.ANNOTATION_TERMINATION_PATH: spec.get("terminationMessagePath") or "/dev/termination-log",
        model.ANNOTATION_TERMINATION_POLICY: spec.get("terminationMessagePolicy") or "File",
        model.ANNOTATION_GRACE: str(podspec.grace_seconds(pod)),
    }
    pre_stop = (spec.get("lifecycle") or {}).get("preStop")
    if pre_stop:
        out[model.ANNOTATION_PRE_STOP] = orjson.dumps(pre_stop).decode()
    if spec.get("ports"):
        out[model.ANNOTATION_PORTS] = orjson.dumps(spec["ports"]).decode()
    return out


def resources(pod: Object, spec: Object, capacity_memory: float) -> pb.LinuxContainerResources:
    asked, limit = podspec.requests(spec), podspec.limits(spec)
    cpu = asked.get("cpu", limit.get("cpu", 0.0))
    out = pb.LinuxContainerResources(
        cpu_shares=cgroups.cpu_shares(cpu),
        cpu_period=cgroups.CPU_PERIOD_MICROSECONDS,
        cpu_quota=cgroups.cpu_quota(limit.get("cpu", 0.0)),
        memory_limit_in_bytes=int(limit.get("memory", 0.0)),
        oom_score_adj=oom_score_adjust(pod, spec, capacity_memory),
    )
    for name, value in limit.items():
        if name.startswith("hugepages-"):
            out.hugepage_limits.append(pb.HugepageLimit(page_size=_page_size(name.removeprefix("hugepages-")), limit=int(value)))
    return out


def _page_size(text: str) -> str:
    """2Mi -> 2MB, as the hugetlb controller spells it."""
    return text.replace("i", "B")


def oom_score_adjust(pod: Object, spec: Object, capacity_memory: float) -> int:
    if podspec.is_critical(pod):
        return OOM_GUARANTEED
    qos = podspec.qos_class(pod)
    if qos == "Guaranteed":
        return OOM_GUARANTEED
    if qos == "BestEffort" or not capacity_memory:
        return OOM_BEST_EFFORT
    asked = podspec.requests(spec).get("memory", 0.0)
    return min(max(int(1000 - 1000 * asked / capacity_memory), 1000 + OOM_GUARANTEED), OOM_BEST_EFFORT - 1)


def security(pod: Object, spec: Object, around: Surroundings) -> pb.LinuxContainerSecurityContext:
    """The container's security context over the pod's. ConfigError when runAsNonRoot does not hold."""
    pod_context = pod["spec"].get("securityContext") or {}
    context = {**{k: v for k, v in pod_context.items() if v is not None}, **{k: v for k, v in (spec.get("securityContext") or {}).items() if v is not None}}
    privileged = bool(context.get("privileged"))
    options = namespaces(pod)
    if around.target_id:
        options.pid = pb.TARGET
        options.target_id = around.target_id
    unmasked = privileged or context.get("procMount") == "Unmasked"
    out = pb.LinuxContainerSecurityContext(
        privileged=privileged,
        namespace_options=options,
        readonly_rootfs=bool(context.get("readOnlyRootFilesystem")),
        supplemental_groups=_groups(pod),
        no_new_privs=context.get("allowPrivilegeEscalation") is False,
        masked_paths=() if unmasked else MASKED_PATHS,
        readonly_paths=() if unmasked else READONLY_PATHS,
        seccomp=_seccomp(context, privileged, around),
        apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
    )
    capabilities = context.get("capabilities") or {}
    if capabilities:
        out.capabilities.add_capabilities.extend(capabilities.get("add") or ())
        out.capabilities.drop_capabilities.extend(capabilities.get("drop") or ())
    user = context.get("runAsUser")
    if user is None:
        user = around.image_user
        if user is None and around.image_username:
            out.run_as_username = around.image_username
    if user is not None:
        out.run_as_user.value = user
    if context.get("runAsGroup") is not None:
        out.run_as_group.value = context["runAsGroup"]
    if context.get("runAsNonRoot"):
        _check_non_root(pod, spec, context.get("runAsUser"), around)
    return out


def _check_non_root(pod: Object, spec: Object, asked: int | None, around: Surroundings) -> None:
    where = f'pod: "{podspec.full_name(pod)}", container: {spec["name"]}'
    if asked is not None:
        if asked == 0:
            raise env.ConfigError(f"container's runAsUser breaks non-root policy ({where})")
    elif around.image_user == 0 or (around.image_user is None and not around.image_username):
        raise env.ConfigError(f"container has runAsNonRoot and image will run as root ({where})")
    elif around.image_username:
        raise env.ConfigError(f"container has runAsNonRoot and image has non-numeric user ({around.image_username}), cannot verify user is non-root ({where})")


def _groups(pod: Object) -> list[int]:
    context = pod["spec"].get("securityContext") or {}
    groups = list(context.get("supplementalGroups") or ())
    if context.get("fsGroup") is not None:
        groups.append(context["fsGroup"])
    return groups


def _seccomp(context: Object, privileged: bool, around: Surroundings) -> pb.SecurityProfile:
    profile = context.get("seccompProfile") or {}
    kind = profile.get("type") or ("RuntimeDefault" if around.seccomp_default else "Unconfined")
    if privileged:
        kind = "Unconfined"
    if kind == "Localhost":
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=f"{around.seccomp_root}/{profile.get('localhostProfile', '')}")
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault if kind == "RuntimeDefault" else pb.SecurityProfile.Unconfined)
