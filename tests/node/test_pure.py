"""The node's pure parts: environment, resolver, requests and QoS, admission, configuration, manifests, statuses' patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.node import admission, config, criconfig, env, housekeeping, podspec, pull, resolv, sources
from fastkube.node.model import Container, RuntimePod, Sandbox
from fastkube.node.probes import Counter
from fastkube.node.statuses import merge_patch, same

Object = dict[str, Any]


def pod_of(*containers: Object, **spec: Any) -> Object:
    return {"metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": 'q"x', "b": "2"}}, "spec": {"containers": list(containers), **spec}}


# --- environment ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$$", "$"), ("$(A)$(A)-$", "11-$"), ("$$$(A)", "$1"), ("$(", "$("), ("$()", "$()")],
)
def test_expansion(text: str, expected: str):
    assert env.expand(text, {"A": "1"}) == expected


@given(st.text(alphabet="$()AB x"))
def test_expansion_equals_upstreams_scanner(text: str):
    """The documented algorithm, as a character scanner."""
    out, i = [], 0
    while i < len(text):
        if text[i] == "$" and i + 1 < len(text):
            if text[i + 1] == "$":
                out.append("$")
                i += 2
                continue
            if text[i + 1] == "(":
                end = text.find(")", i)
                inner = text[i + 2 : end] if end >= 0 else ""
                if end >= 0 and "(" not in inner:
                    out.append({"A": "1", "B": "22"}.get(inner, text[i : end + 1]))
                    i = end + 1
                    continue
        out.append(text[i])
        i += 1
    assert env.expand(text, {"A": "1", "B": "22"}) == "".join(out)


def test_service_variables():
    service = {
        "metadata": {"name": "my-db", "namespace": "ns"},
        "spec": {"clusterIP": "10.0.0.5", "ports": [{"name": "sql-port", "port": 5432}, {"port": 53, "protocol": "UDP"}]},
    }
    headless = {"metadata": {"name": "none", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}
    out = env.service_variables([headless, service])
    assert out == {
        "MY_DB_SERVICE_HOST": "10.0.0.5", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL_PORT": "5432", "MY_DB_PORT": "tcp://10.0.0.5:5432",
        "MY_DB_PORT_5432_TCP": "tcp://10.0.0.5:5432", "MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.0.0.5",
        "MY_DB_PORT_53_UDP": "udp://10.0.0.5:53", "MY_DB_PORT_53_UDP_PROTO": "udp", "MY_DB_PORT_53_UDP_PORT": "53", "MY_DB_PORT_53_UDP_ADDR": "10.0.0.5",
    }  # fmt: skip


def test_links_may_be_turned_off():
    services = [{"metadata": {"name": n, "namespace": ns}, "spec": {}} for n, ns in (("kubernetes", "default"), ("x", "ns"), ("y", "other"))]
    assert [s["metadata"]["name"] for s in env.visible_services(pod_of(), services)] == ["kubernetes", "x"]
    assert [s["metadata"]["name"] for s in env.visible_services(pod_of(enableServiceLinks=False), services)] == ["kubernetes"]


def test_downward_values():
    container = {"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1500m"}}}
    pod = pod_of(container)
    value = lambda resource, divisor="0": env.resource_value(pod, {"resource": resource, "divisor": divisor}, container, {"memory": 2e9})  # noqa: E731
    assert [value("limits.cpu"), value("limits.cpu", "1m"), value("requests.cpu", "1m"), value("requests.memory", "1Mi"), value("limits.memory")] == [
        "2",
        "1500",
        "250",
        "1024",
        "2000000000",
    ]
    assert env.field_value(pod, "metadata.labels", {}) == 'a="q\\"x"\nb="2"'
    assert env.field_value(pod, "metadata.labels['a']", {}) == 'q"x'
    with pytest.raises(env.ConfigError, match="unsupported fieldPath"):
        env.field_value(pod, "spec.tolerations", {})


# --- resolver ---


def test_dns_policies():
    host = resolv.parse("nameserver 8.8.8.8\nsearch corp.example\noptions timeout:1 rotate # end\n")
    first = resolv.pod_dns(pod_of(), host, ["10.96.0.10"], "cluster.local")
    assert (first.servers, first.searches, first.options) == (
        ["10.96.0.10"],
        ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
        ["ndots:5"],
    )
    for spec in ({"hostNetwork": True}, {"dnsPolicy": "Default"}):
        assert resolv.pod_dns(pod_of(**spec), host, ["10.96.0.10"], "cluster.local") == host
    assert resolv.pod_dns(pod_of(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"), host, ["10.96.0.10"], "c.l").servers == ["10.96.0.10"]
    none = resolv.pod_dns(pod_of(dnsPolicy="None", dnsConfig={"nameservers": ["1.1.1.1"], "options": [{"name": "edns0"}]}), host, ["x"], "c.l")
    assert (none.servers, none.searches, none.options) == (["1.1.1.1"], [], ["edns0"])


def test_hostnames():
    assert resolv.hostname_of(pod_of(), "c.l", "node") == ("p", "")
    assert resolv.hostname_of(pod_of(hostname="h", subdomain="s"), "c.l", "node") == ("h", "s.ns.svc.c.l")
    assert resolv.sandbox_hostname(pod_of(hostname="h", subdomain="s", setHostnameAsFQDN=True), "c.l", "node") == "h.s.ns.svc.c.l"
    assert resolv.sandbox_hostname(pod_of(hostNetwork=True), "c.l", "node") == ""
    long = {"metadata": {"name": "x" * 62 + "-" + "y" * 50, "uid": "u"}, "spec": {}}
    assert resolv.hostname_of(long, "c.l", "n")[0] == "x" * 62


# --- resources ---


def box(cpu: str = "", memory: str = "", lcpu: str = "", lmemory: str = "", **more: Any) -> Object:
    resources = {"requests": {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}, "limits": {k: v for k, v in (("cpu", lcpu), ("memory", lmemory)) if v}}
    return {"name": "c", "resources": resources, **more}


@pytest.mark.parametrize(
    ("containers", "qos"),
    [([box()], "BestEffort"), ([box("1")], "Burstable"), ([box("1", "1Gi", "1", "1Gi")], "Guaranteed"), ([box("1", "1Gi", "1", "1Gi"), box()], "Burstable"),
     ([box("1", "1Gi", "2", "1Gi")], "Burstable"), ([box("1000m", "1Gi", "1", "1024Mi")], "Guaranteed"), ([box("", "", "1", "1Gi")], "Guaranteed")],
)  # fmt: skip
def test_qos(containers: list[Object], qos: str):
    assert podspec.qos_class(pod_of(*containers)) == qos


def test_requests_of_init_phase_and_sidecars():
    pod = pod_of(box("1"), initContainers=[box("2"), box("500m", restartPolicy="Always"), box("3")], overhead={"cpu": "100m"})
    assert math.isclose(podspec.pod_requests(pod)["cpu"], 3.6)  # 3 + the sidecar before it, plus overhead


def test_oom_scores():
    burstable = pod_of(box("", "1Gi"))
    assert criconfig.oom_score_adjust(burstable, burstable["spec"]["containers"][0], 4 * 2**30) == 750
    assert criconfig.oom_score_adjust(pod_of(box()), box(), 1e9) == 1000
    guaranteed = pod_of(box("1", "1Gi", "1", "1Gi"))
    assert criconfig.oom_score_adjust(guaranteed, guaranteed["spec"]["containers"][0], 1e9) == -997


# --- admission ---


def admit(pod: Object, *others: Object, node: Object | None = None, **more: Any) -> Any:
    return admission.admit(pod, others, node, {"cpu": 2.0, "memory": 1e9}, 3, **more)


def test_admission():
    node = {"metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}}, "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}}
    tolerating = {"tolerations": [{"key": "k", "operator": "Equal", "value": "v"}]}
    assert admit(pod_of(box("1"))) is None
    assert admit(pod_of(box("1500m")), pod_of(box("1"))) == ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000")
    assert admit(pod_of(), pod_of(), pod_of(), pod_of())[0] == "OutOfpods"
    assert admit(pod_of(nodeSelector={"zone": "b"}), node=node)[0] == "NodeAffinity"
    assert admit(pod_of(), node=node)[0] == "TaintToleration" and admit(pod_of(**tolerating), node=node) is None
    port = {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}
    assert admit(pod_of(port), pod_of(port))[0] == "NodePorts"
    sysctl = {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}
    assert admit(pod_of(**sysctl)) == ("SysctlForbidden", 'forbidden sysctl: "kernel.msgmax" not allowlisted')
    assert admit(pod_of(**sysctl), unsafe_sysctls=["kernel.msg*"]) is None
    assert admit(pod_of(os={"name": "windows"}))[0] == "PodOSNotSupported"


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [(("zone", "In", ["a", "b"]), True), (("zone", "NotIn", ["a"]), False), (("none", "NotIn", ["a"]), True), (("zone", "Exists", []), True), (("none", "DoesNotExist", []), True),
     (("size", "Gt", ["4"]), True), (("size", "Lt", ["5"]), False), (("zone", "Gt", ["4"]), False)],
)  # fmt: skip
def test_node_affinity(requirement: tuple[str, str, list[str]], matches: bool):
    key, operator, values = requirement
    term = {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    assert admission.selects({"affinity": affinity}, {"zone": "a", "size": "5"}, "n") is matches


# --- configuration and manifests ---


def test_kubelet_configuration(tmp_path):
    path = tmp_path / "kubelet.yaml"
    path.write_text(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\nclusterDNS: [10.0.0.10]\nsyncFrequency: 1m\nimageMinimumGCAge: 1m30s\ncontainerLogMaxSize: 1Mi\nauthentication: {anonymous: {enabled: true}, x509: {clientCAFile: /ca}}\nauthorization: {mode: AlwaysAllow}\n"
    )
    out = config.read(path)
    assert (out["max_pods"], out["cluster_dns"], out["image_min_age_seconds"], out["container_log_max_bytes"], out["anonymous"], str(out["client_ca_file"]), out["authorization"]) == (7, ["10.0.0.10"], 90.0, 1 << 20, True, "/ca", "AlwaysAllow")  # fmt: skip
    for text, message in [("maxPodz: 1", 'unknown field "maxPodz"'), ("maxPods: many", "invalid literal"), ("imageMinimumGCAge: soon", "no duration")]:
        path.write_text(f"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{text}\n")
        with pytest.raises(config.ConfigError, match=message):
            config.read(path)
    path.write_text("{")
    with pytest.raises(config.ConfigError, match="no YAML"):
        config.read(path)
    with pytest.raises(config.ConfigError, match="cannot read"):
        config.read(tmp_path / "none")


def test_flags_with_lists():
    assert config.parse_taints("a=b:NoSchedule,c:NoExecute") == [{"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "c", "effect": "NoExecute"}]
    assert config.parse_pairs("a=b,c=") == {"a": "b", "c": ""}
    for bad in ("a", "a:Nope", ":NoSchedule"):
        with pytest.raises(config.ConfigError):
            config.parse_taints(bad)


MANIFEST = "kind: Pod\nmetadata: {name: m}\nspec: {containers: [{name: c, image: i}]}"


def test_manifests():
    (pod,) = sources.parse(MANIFEST, "/a", "file", "n1")
    assert pod["metadata"]["name"] == "m-n1" and pod["metadata"]["namespace"] == "default" and pod["spec"]["nodeName"] == "n1" and podspec.is_static(pod)
    assert pod["metadata"]["uid"] == sources.parse(MANIFEST, "/a", "file", "n1")[0]["metadata"]["uid"]
    assert len({sources.parse(t, o, "file", n)[0]["metadata"]["uid"] for t, o, n in ((MANIFEST, "/a", "n1"), (MANIFEST, "/b", "n1"), (MANIFEST, "/a", "n2"), (MANIFEST.replace("i}", "j}"), "/a", "n1"))}) == 4  # fmt: skip
    mirror = sources.mirror_of(pod, "node-uid")
    assert sources.mirrors(mirror, pod) and podspec.is_mirror(mirror) and "uid" not in mirror["metadata"]


@pytest.mark.parametrize("text", ["{", "a", "kind: Service", "kind: Pod\nspec: {}", "kind: Pod\nmetadata: {name: x}\nspec: 1", MANIFEST + "\n  #\n---\n- x",
                                  "kind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c, image: i}], volumes: [{name: s, secret: {secretName: s}}]}"])  # fmt: skip
def test_bad_manifests(text: str):
    with pytest.raises(sources.BadManifest):
        sources.parse(text, "/a", "file", "n1")


# --- small machines ---


def test_probe_thresholds():
    counter = Counter(failure_threshold=3, success_threshold=2)
    assert [counter.count(s) for s in (True, True, False, False, True, False, False, False, True, True)] == [
        None,
        True,
        None,
        None,
        None,
        None,
        None,
        False,
        None,
        True,
    ]


@pytest.mark.parametrize(("name", "full"), [("nginx", "docker.io/library/nginx:latest"), ("a/b:1", "docker.io/a/b:1"), ("r.io/x", "r.io/x:latest"), ("localhost:5000/x", "localhost:5000/x:latest"), ("x@sha256:1", "docker.io/library/x@sha256:1")])  # fmt: skip
def test_image_names(name: str, full: str):
    assert pull.normalize(name) == full


def test_pull_policies():
    assert [pull.pull_policy({"image": i}) for i in ("nginx", "nginx:1", "nginx@sha256:1")] == ["Always", "IfNotPresent", "IfNotPresent"]


def test_pull_credentials():
    import base64

    import orjson

    auths = {
        "https://index.docker.io/v1/": {"auth": base64.b64encode(b"u:p").decode()},
        "r.io": {"username": "a", "password": "b"},
        "r.io/team": {"username": "t", "password": "q"},
    }
    secret = {"metadata": {"name": "s"}, "data": {".dockerconfigjson": base64.b64encode(orjson.dumps({"auths": auths})).decode()}}
    assert [(a.username, a.password) for a in pull._credentials("nginx", [secret])] == [("u", "p")]
    assert [a.username for a in pull._credentials("r.io/team/x:1", [secret])] == ["t", "a"]
    assert pull._credentials("other.io/x", [secret]) == [None]
    assert pull._credentials("nginx", [{"metadata": {"name": "bad"}, "data": {".dockerconfigjson": "e30x"}}]) == [None]


def test_dead_weight_keeps_what_is_asked_for():
    runs = [Container(f"i{n}", "c", "s1", n, "exited" if n < 4 else "running", created_at=n) for n in range(5)]
    pod = RuntimePod("u", sandboxes=[Sandbox("s1", 1), Sandbox("s0", 0, ready=False)], containers=runs[::-1])
    assert housekeeping.dead_weight(pod) == (["i2", "i1", "i0"], ["s0"])
    pod.containers = pod.containers[1:]  # nothing runs: the last and the one before stay
    assert housekeeping.dead_weight(pod)[0] == ["i1", "i0"]


json_ = st.recursive(st.one_of(st.booleans(), st.integers(0, 3), st.sampled_from(["", "a"])), lambda c: st.one_of(st.lists(c, max_size=2), st.dictionaries(st.sampled_from("abc"), c, max_size=3)), max_leaves=8)  # fmt: skip


def apply_merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = apply_merge(out.get(key), value)
    return out


@given(st.dictionaries(st.sampled_from("abcd"), json_, max_size=4), st.dictionaries(st.sampled_from("abcd"), json_, max_size=4))
def test_merge_patch_leads_from_old_to_new(old: Object, new: Object):
    assert apply_merge(old, merge_patch(old, new)) == new
    assert same(old, new) or merge_patch(old, new)


# --- eviction ---


def test_eviction_thresholds_and_order():
    from fastkube.node import eviction

    signals = {
        "memory.available": eviction.Signal(50 << 20, 1 << 30),
        "nodefs.available": eviction.Signal(5e9, 100e9),
        "pid.available": eviction.Signal(10, 100),
    }
    assert eviction.pressed({"memory.available": "100Mi", "nodefs.available": "10%", "imagefs.available": "15%"}, signals) == [
        "memory.available",
        "nodefs.available",
    ]
    assert eviction.pressed({"memory.available": "1Mi", "nodefs.available": "5%"}, signals) == []

    def pod(name: str, request: str, priority: int = 0) -> Object:
        return {"metadata": {"name": name, "uid": name}, "spec": {"priority": priority, "containers": [box("", request)]}}

    pods = [pod("within", "1Gi"), pod("over", "10Mi"), pod("important", "10Mi", 1000), pod("far-over", "1Mi"), pod("critical", "", 2_000_000_000)]
    usage = {"within": 5e8, "over": 100e6, "important": 900e6, "far-over": 200e6, "critical": 1e9}
    assert [p["metadata"]["name"] for p in eviction.rank(pods, usage, "memory")] == ["far-over", "over", "important", "within"]
