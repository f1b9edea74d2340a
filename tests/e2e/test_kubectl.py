"""What a user types, against real containers: each test is one kubectl habit (behaviours.md A3, A4, A10, C1, C8, U2)."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import wait_for

WEB = ["create", "deployment", "web", "--image=nginx:1", "--replicas=2"]


@pytest.fixture
def web(cluster, ns):
    """A deployment of two nginx pods, ready."""
    cluster.kubectl(*WEB)
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
    return cluster


def pod_names(cluster, selector="app=web"):
    return cluster.kubectl("get", "pods", "-l", selector, "-o", "name").split()


def test_get_nodes_wide(cluster):
    lines = cluster.kubectl("get", "nodes", "-o", "wide").splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "ROLES", "AGE", "VERSION", "INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"]
    assert "Ready" in lines[1] and "10.245.0.1" in lines[1] and "containerd://" in lines[1]


def test_create_deployment_scale_and_delete(web):
    lines = web.kubectl("get", "deployment", "web").splitlines()
    assert lines[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert lines[1].split()[:4] == ["web", "2/2", "2", "2"]
    pods = web.kubectl("get", "pods").splitlines()
    assert pods[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert re.match(r"web-[bcdf0-9]+-[a-z0-9]{5} +1/1 +Running +0 +", pods[1])
    web.kubectl("scale", "deployment/web", "--replicas=4")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert len(pod_names(web)) == 4
    web.kubectl("scale", "deployment/web", "--replicas=1")
    wait_for("scaled down", lambda: len(pod_names(web)) == 1)
    assert "deleted" in web.kubectl("delete", "deployment", "web")
    wait_for("pods gone", lambda: not pod_names(web))


def test_set_image_rollout_and_undo(web):
    web.kubectl("set", "image", "deployment/web", "nginx=busybox:1")
    web.kubectl("set", "image", "deployment/web", "nginx=nginx:1")
    web.kubectl("annotate", "deployment/web", "kubernetes.io/change-cause=back to nginx")
    web.kubectl("set", "env", "deployment/web", "MODE=two")
    assert "successfully rolled out" in web.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
    history = web.kubectl("rollout", "history", "deployment/web")
    assert "REVISION" in history and len(history.strip().splitlines()) >= 4
    web.kubectl("rollout", "undo", "deployment/web")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
    template = web.get("deployment", "web")["spec"]["template"]["spec"]["containers"][0]
    assert template["image"] == "nginx:1" and "env" not in template
    assert web.get("deployment", "web")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "5"
    web.kubectl("rollout", "restart", "deployment/web")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=90s")


def test_expose_nodeport_and_reach_it_everywhere(web):
    web.kubectl("expose", "deployment", "web", "--type=NodePort", "--port=80")
    service = web.get("service", "web")
    cluster_ip, node_port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["nodePort"]
    assert 30000 <= node_port <= 32767
    wait_for("ClusterIP", lambda: "nginx" in web.curl(f"http://{cluster_ip}/").lower() or "html" in web.curl(f"http://{cluster_ip}/").lower(), 20)
    assert "html" in web.curl(f"http://10.245.0.1:{node_port}/").lower()
    name = pod_names(web)[0]
    namespace = service["metadata"]["namespace"]
    answer = web.kubectl("exec", name, "--", "busybox", "wget", "-q", "-O", "-", f"http://web.{namespace}.svc.cluster.local/")
    assert "html" in answer.lower()
    # a pod reaches itself through its own service (hairpin)
    for _ in range(6):
        assert "html" in web.kubectl("exec", name, "--", "busybox", "wget", "-q", "-O", "-", f"http://{cluster_ip}/").lower()
    listing = web.kubectl("get", "service", "web").splitlines()
    assert listing[0].split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert f"80:{node_port}/TCP" in listing[1]
    web.kubectl("scale", "deployment/web", "--replicas=0")
    refused = lambda: web.namespace.run("curl", "-sS", "-m", "5", f"http://{cluster_ip}/", check=False).returncode == 7  # noqa: E731
    wait_for("refused at once without endpoints", refused, 30)


def test_describe_shows_state_and_events(web):
    text = web.kubectl("describe", "deployment", "web")
    assert "ScalingReplicaSet" in text and re.search(r"Scaled up replica set web-\w+ from 0 to 2", text)
    text = web.kubectl("describe", pod_names(web)[0])
    for word in ("Successfully assigned", "Created", "Started", "QoS Class:", "Ready             True"):
        assert word in text, text
    text = web.kubectl("describe", "node")
    for word in ("Allocatable:", "Kubelet Version", "Lease:", "Non-terminated Pods"):
        assert word in text


def run_pod(cluster, name, script, *extra):
    cluster.kubectl("run", name, "--image=busybox:1", "--image-pull-policy=IfNotPresent", "--restart=Never", *extra, "--", "sh", "-c", script)


def test_logs_and_follow(cluster, ns):
    run_pod(cluster, "talker", "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done")
    wait_for("running", lambda: cluster.get("pod", "talker")["status"]["phase"] in ("Running", "Succeeded"))
    follow = cluster.popen("logs", "-f", "talker")
    out, _ = follow.communicate(timeout=60)
    assert [l for l in out.splitlines() if l.startswith("line")] == [f"line {i}" for i in range(1, 7)]
    assert cluster.kubectl("logs", "talker", "--tail=2").split() == ["line", "5", "line", "6"]
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z line 1", cluster.kubectl("logs", "talker", "--timestamps"))
    wait_for("completed", lambda: "Completed" in cluster.kubectl("get", "pod", "talker"))


def test_exec_exit_codes_stdin_and_tty(web):
    name = pod_names(web)[0]
    assert web.kubectl("exec", name, "--", "busybox", "echo", "hello") == "hello\n"
    assert web.kubectl("exec", "-i", name, "--", "busybox", "cat", stdin="through\n") == "through\n"
    failed = subprocess.run(
        [*web.namespace.enter, web.kubectl_binary, "exec", name, "--", "busybox", "sh", "-c", "exit 3"], env=web.environment, capture_output=True, timeout=30
    )
    assert failed.returncode == 3
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("nsenter", [*web.namespace.enter, web.kubectl_binary, "exec", "-it", name, "--", "busybox", "sh"], web.environment)
    seen, sent = b"", False
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and b"sum=42" not in seen:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096)
        if not sent and b"#" in seen:
            os.write(terminal, b"tty; echo sum=$((6*7)); exit\n")
            sent = True
    assert b"sum=42" in seen and b"/dev/" in seen, seen
    while select.select([terminal], [], [], 5)[0]:
        try:
            if not os.read(terminal, 4096):
                break
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_attach(cluster, ns):
    run_pod(cluster, "echo", "while read l; do echo got $l; done", "-i", "--attach=false")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/echo", "--timeout=60s")
    attached = cluster.popen("attach", "-i", "echo", stdin=subprocess.PIPE)
    out, _ = attached.communicate("one\ntwo\n", timeout=30)
    assert "got one" in out and "got two" in out


def test_cp_there_and_back(web, tmp_path):
    name = pod_names(web)[0].removeprefix("pod/")
    here, back = tmp_path / "here.bin", tmp_path / "back.bin"
    here.write_bytes(os.urandom(300_000))
    web.kubectl("cp", str(here), f"{name}:/tmp/there.bin")
    web.kubectl("cp", f"{name}:/tmp/there.bin", str(back))
    assert back.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("target", ["pod", "deployment/web"])
def test_port_forward(web, target):
    target = pod_names(web)[0] if target == "pod" else target
    forward = web.popen("port-forward", target, ":80")
    try:
        line = forward.stdout.readline()
        port = re.search(r"127.0.0.1:(\d+) -> 80", line).group(1)
        for _ in range(3):
            assert "html" in web.curl(f"http://127.0.0.1:{port}/").lower()
    finally:
        forward.send_signal(signal.SIGINT)
        forward.communicate(timeout=20)


def test_edit_patch_label_annotate(web):
    web.kubectl("edit", "deployment", "web", env={"KUBE_EDITOR": "sed -i s/replicas:.2/replicas:\\ 3/"})
    assert web.get("deployment", "web")["spec"]["replicas"] == 3
    web.kubectl("patch", "deployment", "web", "-p", '{"spec":{"replicas":1}}')
    web.kubectl("patch", "deployment", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":2}]')
    web.kubectl("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"annotations":{"a":"b"}}}')
    deployment = web.get("deployment", "web")
    assert deployment["spec"]["replicas"] == 2 and deployment["metadata"]["annotations"]["a"] == "b"
    web.kubectl("label", "deployment", "web", "tier=front")
    assert "web" in web.kubectl("get", "deploy", "-l", "tier in (front,back),tier!=none")
    web.kubectl("label", "deployment", "web", "tier-")
    web.kubectl("annotate", "deployment", "web", "note=x", "a-")
    annotations = web.get("deployment", "web")["metadata"]["annotations"]
    assert annotations["note"] == "x" and "a" not in annotations
    assert "NAME" in web.kubectl("get", "deploy", "--show-labels")


def test_get_watch_sees_changes(cluster, ns):
    watch = cluster.popen("get", "configmaps", "-w", "--output-watch-events")
    try:
        time.sleep(1)
        cluster.kubectl("create", "configmap", "seen", "--from-literal=a=b")
        cluster.kubectl("delete", "configmap", "seen")
        lines = ""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and "DELETED" not in lines:
            if select.select([watch.stdout], [], [], 0.5)[0]:
                lines += os.read(watch.stdout.fileno(), 65536).decode()
        assert re.search(r"ADDED +seen", lines) and re.search(r"DELETED +seen", lines)
    finally:
        watch.terminate()
        watch.communicate()


def test_output_formats(web):
    name = pod_names(web)[0].removeprefix("pod/")
    assert web.kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}") == "Running"
    assert web.kubectl("get", "pod", name, "-o", "custom-columns=N:.metadata.name,IP:.status.podIP").split()[:2] == ["N", "IP"]
    assert web.kubectl("get", "pod", name, "-o", "yaml").startswith("apiVersion: v1\nkind: Pod\n")
    assert web.kubectl("get", "pods", "--sort-by=.metadata.name", "-o", "name").startswith("pod/web-")
    assert web.kubectl("get", "pods", "--field-selector=status.phase=Running", "--chunk-size=1", "-o", "name").count("pod/") == 2
    assert "IP" in web.kubectl("get", "pods", "-o", "wide").splitlines()[0]
    assert "deployment.apps/web" in web.kubectl("get", "all")


def test_get_events(web):
    text = web.kubectl("get", "events")
    assert text.splitlines()[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert "Scheduled" in text and "Started" in text


def test_cordon_drain_uncordon(web):
    node = web.get("nodes")["items"][0]["metadata"]["name"]
    web.kubectl("cordon", node)
    try:
        assert "SchedulingDisabled" in web.kubectl("get", "nodes")
        namespace = web.get("deployment", "web")["metadata"]["namespace"]
        web.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--pod-selector=app=web", "--timeout=60s", timeout=90)
        pending = wait_for("pods wait", lambda: [p for p in web.get("pods", "-n", namespace)["items"] if p["status"]["phase"] == "Pending"])
        condition = wait_for(
            "why they wait",
            lambda: next((c for c in web.get("pod", pending[0]["metadata"]["name"])["status"].get("conditions", []) if c["type"] == "PodScheduled"), None),
        )
        assert condition["reason"] == "Unschedulable" and "1 node(s) were unschedulable" in condition["message"]
    finally:
        web.kubectl("uncordon", node)
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")


MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings, labels: {{a: "1"}}}}
data: {{color: {color}}}
"""


def test_apply_changed_yaml_and_server_side(cluster, ns):
    assert "created" in cluster.kubectl("apply", "-f", "-", stdin=MANIFEST.format(color="red"))
    assert "unchanged" in cluster.kubectl("apply", "-f", "-", stdin=MANIFEST.format(color="red"))
    diff = cluster.kubectl("diff", "-f", "-", stdin=MANIFEST.format(color="blue"), check=False)
    assert "-  color: red" in diff and "+  color: blue" in diff
    assert "configured" in cluster.kubectl("apply", "-f", "-", stdin=MANIFEST.format(color="blue"))
    assert cluster.get("configmap", "settings")["data"] == {"color": "blue"}
    refused = cluster.kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=MANIFEST.format(color="green"), check=False)
    assert "conflict" in refused
    cluster.kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=MANIFEST.format(color="green"))
    found = json.loads(cluster.kubectl("get", "configmap", "settings", "-o", "json", "--show-managed-fields"))
    assert found["data"] == {"color": "green"}
    assert ("other", "Apply") in {(m["manager"], m["operation"]) for m in found["metadata"]["managedFields"]}
    dry = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=MANIFEST.format(color="black"))
    assert "dry run" in dry and cluster.get("configmap", "settings")["data"] == {"color": "green"}


def test_unknown_fields_are_refused(cluster, ns):
    bad = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\nnope: 1\n"
    assert 'unknown field "nope"' in cluster.kubectl("apply", "-f", "-", stdin=bad, check=False)


def test_explain_and_discovery(cluster):
    assert "containers\t<[]Container> -required-" in cluster.kubectl("explain", "pod.spec")
    assert "livenessProbe" in cluster.kubectl("explain", "pod.spec", "--recursive")
    text = cluster.kubectl("api-resources")
    assert re.search(r"^deployments +deploy +apps/v1 +true +Deployment", text, re.M)
    assert "apps/v1" in cluster.kubectl("api-versions").split()
    assert "Server Version: v1.36" in cluster.kubectl("version")
    assert "is running at" in cluster.kubectl("cluster-info")


def test_auth_can_i(cluster, ns):
    assert cluster.kubectl("auth", "can-i", "create", "pods").strip() == "yes"
    refused = cluster.kubectl("auth", "can-i", "create", "pods", "--as=system:serviceaccount:default:default", check=False)
    assert refused.splitlines()[0].strip() == "no"
    assert "selfsubjectaccessreviews" in cluster.kubectl("auth", "can-i", "--list", "--as=somebody")
    assert "kubernetes-admin" in cluster.kubectl("auth", "whoami")


def test_top_fails_politely(cluster):
    assert "Metrics API not available" in cluster.kubectl("top", "nodes", check=False)


def test_service_account_token_in_pod_speaks_to_the_api(cluster, ns):
    run_pod(cluster, "asker", "sleep 60")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/asker", "--timeout=60s")
    assert cluster.kubectl("exec", "asker", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount").split() == ["ca.crt", "namespace", "token"]
    token = cluster.kubectl("exec", "asker", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
    who = cluster.kubectl(
        "auth", "whoami", f"--token={token}", "-o", "json", "--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443", "--insecure-skip-tls-verify"
    )
    assert json.loads(who)["status"]["userInfo"]["username"] == f"system:serviceaccount:{ns}:default"


CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  containers:
    - {name: c, image: "busybox:1", command: [sh, -c, "%s"], volumeMounts: [{name: v, mountPath: /data}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
"""


def test_a_claim_gets_a_volume_that_outlives_its_pod(cluster, ns):
    def phase(name):
        return cluster.get("pod", name)["status"]["phase"]

    cluster.kubectl("apply", "-f", "-", stdin=CLAIM % ("writer", "echo kept > /data/file"))
    wait_for("written", lambda: phase("writer") == "Succeeded")
    assert "Bound" in cluster.kubectl("get", "pvc", "data")
    cluster.kubectl("delete", "pod", "writer")
    cluster.kubectl("apply", "-f", "-", stdin=CLAIM % ("reader", "cat /data/file"))
    wait_for("read", lambda: phase("reader") == "Succeeded")
    assert cluster.kubectl("logs", "reader").strip() == "kept"


def test_streams_over_spdy(web):
    """What kubectl before 1.31 speaks (Debian's is 1.20): the same sessions without WebSockets."""
    spdy = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
    name = pod_names(web)[0]
    assert web.kubectl("exec", "-i", name, "--", "busybox", "cat", stdin="through\n", env=spdy) == "through\n"
    failed = web.popen("exec", name, "--", "busybox", "sh", "-c", "exit 3", env=spdy)
    failed.communicate(timeout=30)
    assert failed.returncode == 3
    forward = web.popen("port-forward", name, ":80", env=spdy)
    try:
        port = re.search(r"127.0.0.1:(\d+) -> 80", forward.stdout.readline()).group(1)
        for _ in range(3):
            assert "html" in web.curl(f"http://127.0.0.1:{port}/").lower()
    finally:
        forward.send_signal(signal.SIGINT)
        forward.communicate(timeout=20)


def test_the_example_of_ci_up(cluster, ns):
    """What ci/up applies and fetches: by ClusterIP, by NodePort, by name from inside a pod; twice is as good as once."""
    example = str(Path(__file__).parents[2] / "examples/web.yaml")
    cluster.import_images("nginx:latest")
    cluster.kubectl("apply", "-f", example)
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=50s")
    page = lambda text: "<h1>" in text and "fastkube" in text  # noqa: E731
    cluster_ip = cluster.get("service", "web")["spec"]["clusterIP"]
    wait_for("page through the ClusterIP", lambda: page(cluster.curl(f"http://{cluster_ip}/")), 20)
    node_port = cluster.get("service", "web-nodeport")["spec"]["ports"][0]["nodePort"]
    wait_for("page through the NodePort", lambda: page(cluster.curl(f"http://10.245.0.1:{node_port}/")), 20)
    pods = pod_names(cluster)
    assert len(pods) == 3
    fetch = ["exec", pods[0], "--", "busybox", "wget", "-q", "-O", "-", f"http://web.{ns}.svc.cluster.local/"]
    wait_for("page by name", lambda: page(cluster.kubectl(*fetch)), 20)
    again = cluster.kubectl("apply", "-f", example)
    assert all(line.endswith("unchanged") for line in again.splitlines()), again
