"""Pods as users see them, on a real node: containerd, the agent, and a real API server."""

from __future__ import annotations

import asyncio
import base64

import pytest

from tests.node.world import NODE, NODE_IP, World, condition_of, container_status, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SLEEP = ["sleep", "3600"]


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


async def test_a_pod_runs_and_goes(world: World):
    spec = {"containers": [{"image": "nginx:1.25", "readinessProbe": {"httpGet": {"port": 80}}, "resources": {"requests": {"cpu": "50m"}}}]}
    await world.create("web", spec, labels={"app": "web"})
    pod = await world.ready("web")
    status = pod["status"]
    assert status["phase"] == "Running" and status["hostIP"] == NODE_IP and status["podIP"].startswith("10.244.7.") and status["qosClass"] == "Burstable"
    assert status["podIPs"] == [{"ip": status["podIP"]}] and status["startTime"] and status["observedGeneration"] == 1
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"], "True"
    )
    container = container_status(pod)
    assert container["ready"] and container["started"] and container["restartCount"] == 0 and container["image"] == "docker.io/library/nginx:1.25"
    assert container["containerID"].startswith("containerd://") and container["imageID"] and "running" in container["state"]
    for reason in ("Pulled", "Created", "Started"):
        event = await world.has_event("web", reason)
        assert event["source"] == {"component": "kubelet", "host": NODE} and event["involvedObject"]["fieldPath"] == "spec.containers{c}"
    await world.delete("web")
    await world.has_event("web", "Killing", "Stopping container c")
    assert not any("web" in p.name for p in (world.config.logs_dir).iterdir())
    assert not (world.config.root_dir / "pods" / pod["metadata"]["uid"]).exists()


async def test_init_containers_then_sidecar_then_containers(world: World):
    volume = [{"name": "d", "mountPath": "/d"}]
    spec = {
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "first", "command": sh("echo one >> /d/x"), "volumeMounts": volume},
            {"name": "side", "restartPolicy": "Always", "command": sh("echo side >> /d/x; sleep 3600"), "volumeMounts": volume,
             "startupProbe": {"exec": {"command": ["grep", "side", "/d/x"]}, "periodSeconds": 1}},
            {"name": "second", "command": sh("echo two >> /d/x"), "volumeMounts": volume},
        ],
        "containers": [{"command": sh("cat /d/x"), "volumeMounts": volume}],
        "volumes": [{"name": "d", "emptyDir": {}}],
    }  # fmt: skip
    await world.create("initial", spec)
    pod = await world.ended("initial")
    assert pod["status"]["phase"] == "Succeeded"
    assert await world.logs("initial") == "one\nside\ntwo\n"
    side = container_status(pod, "side", "initContainerStatuses")
    assert "terminated" in side["state"]  # the sidecar went when the work was done
    assert container_status(pod, "first", "initContainerStatuses")["ready"]
    assert condition_of(pod, "Ready") == "False"
    await world.delete("initial")


async def test_failed_init_container_fails_the_pod(world: World):
    await world.create("noinit", {"restartPolicy": "Never", "initContainers": [{"name": "bad", "command": ["false"]}], "containers": [{"command": SLEEP}]})
    pod = await world.ended("noinit")
    assert pod["status"]["phase"] == "Failed"
    assert container_status(pod)["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert container_status(pod, "bad", "initContainerStatuses")["state"]["terminated"]["exitCode"] == 1
    assert [c["message"] for c in pod["status"]["conditions"] if c["type"] == "Initialized"] == ["containers with incomplete status: [bad]"]
    await world.delete("noinit")


async def test_restart_back_off_and_termination_message(world: World):
    await world.create("crash", {"containers": [{"command": sh("echo -n because > /dev/termination-log; exit 3")}]})
    pod = await world.reaches("crash", lambda p: (container_status(p).get("state", {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff")
    status = container_status(pod)
    assert status["restartCount"] == 1 and "back-off 10s restarting failed container=c pod=crash_default(" in status["state"]["waiting"]["message"]
    assert status["lastState"]["terminated"]["exitCode"] == 3 and status["lastState"]["terminated"]["message"] == "because"
    assert pod["status"]["phase"] == "Running"
    await world.has_event("crash", "BackOff", "Back-off restarting failed container c in pod crash_default(")
    assert (await world.logs("crash", previous="true")) == ""
    await world.delete("crash")


async def test_results_of_pods_that_run_once(world: World):
    await world.create("good", {"restartPolicy": "OnFailure", "containers": [{"command": ["true"]}]})
    await world.create(
        "bad", {"restartPolicy": "Never", "containers": [{"command": sh("echo last words; exit 7"), "terminationMessagePolicy": "FallbackToLogsOnError"}]}
    )
    await world.create(
        "greedy", {"restartPolicy": "Never", "containers": [{"command": sh("x=a; while :; do x=$x$x; done"), "resources": {"limits": {"memory": "16Mi"}}}]}
    )
    await world.create("late", {"activeDeadlineSeconds": 1, "containers": [{"command": SLEEP}]})
    good, bad, greedy, late = [await world.ended(n) for n in ("good", "bad", "greedy", "late")]
    assert good["status"]["phase"] == "Succeeded" and container_status(good)["state"]["terminated"]["reason"] == "Completed"
    assert bad["status"]["phase"] == "Failed" and container_status(bad)["state"]["terminated"]["message"] == "last words\n"
    killed = container_status(greedy)["state"]["terminated"]
    assert (killed["reason"], killed["exitCode"]) == ("OOMKilled", 137)
    assert (late["status"]["phase"], late["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert await world.logs("good") == "" and "last words" in await world.logs("bad")  # a pod that is over keeps its logs
    await world.delete("good", "bad", "greedy", "late")


async def test_probes(world: World):
    spec = {
        "containers": [
            {"name": "live", "command": sh("touch /tmp/ok; sleep 3600"), "livenessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1,
             "terminationGracePeriodSeconds": 1}, "startupProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1}},
            {"name": "tcp", "image": "nginx:1.25", "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}},
            {"name": "never", "command": SLEEP, "readinessProbe": {"httpGet": {"port": 81}, "periodSeconds": 1}},
        ]
    }  # fmt: skip
    await world.create("probed", spec)
    await world.reaches("probed", lambda p: container_status(p, "tcp").get("ready") and container_status(p, "live").get("ready"))
    pod = await world.reaches("probed", lambda p: container_status(p, "never").get("started"))
    assert condition_of(pod, "Ready") == "False" and not container_status(pod, "never")["ready"]
    await world.has_event("probed", "Unhealthy", 'Readiness probe failed: Get "http://')
    await world.exec("probed", ["rm", "/tmp/ok"], "live")
    pod = await world.reaches("probed", lambda p: container_status(p, "live").get("restartCount") == 1 and container_status(p, "live")["ready"])
    assert container_status(pod, "live")["lastState"]["terminated"]["exitCode"] == 137
    await world.has_event("probed", "Unhealthy", "Liveness probe failed: cat: can't open '/tmp/ok'")
    await world.has_event("probed", "Killing", "Container live failed liveness probe, will be restarted")
    await world.delete("probed")


async def test_environment(world: World):
    await world.client.create("v1/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "env"}, "data": {"k": "v", "A": "1"}}, "default")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "env"}, "data": {"s": base64.b64encode(b"hidden").decode()}}
    await world.client.create("v1/secrets", secret, "default")
    container = {
        "command": sh("env; echo $0 $1"), "args": ["$(K)", "$(S)-$(NONE)-$$(K)"], "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "env"}}, {"secretRef": {"name": "absent", "optional": True}}],
        "env": [
            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "k"}}}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "env", "key": "s"}}},
            {"name": "BOTH", "value": "$(K)+$(S)"}, {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
        ],
    }  # fmt: skip
    text = await world.output("env", {"containers": [container]}, labels={"app": "env"})
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    expected = {
        "P_k": "v",
        "P_A": "1",
        "K": "v",
        "S": "hidden",
        "BOTH": "v+hidden",
        "NAME": "env",
        "LABEL": "env",
        "CPU": "500",
        "MEM": "64",
        "HOSTNAME": "env",
    }
    assert expected.items() <= values.items()
    assert values["IP"].startswith("10.244.7.") and values["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert text.splitlines()[-1] == "v hidden-$(NONE)-$(K)"


async def test_missing_configuration_waits_and_then_runs(world: World):
    reference = {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "k"}}}], "command": SLEEP}
    await world.create("waits", {"containers": [reference]})
    await world.create("mounts", {"containers": [{"command": SLEEP}], "volumes": [{"name": "v", "configMap": {"name": "later"}}]})
    pod = await world.reaches("waits", lambda p: (container_status(p).get("state", {}).get("waiting") or {}).get("reason") == "CreateContainerConfigError")
    assert container_status(pod)["state"]["waiting"]["message"] == 'configmap "later" not found'
    await world.has_event("mounts", "FailedMount", 'MountVolume.SetUp failed for volume "v" : configmap "later" not found')
    await world.client.create("v1/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"k": "v"}}, "default")
    await world.ready("waits", 5)
    await world.ready("mounts", 5)
    await world.delete("waits", "mounts")


async def test_volumes(world: World):
    make = world.client.create
    await make("v1/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "vol"}, "data": {"k": "v1", "deep": "d"}}, "default")
    await make("v1/secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vol"}, "stringData": {"s": "hidden"}}, "default")
    host = world.directory / "hostpath"
    spec = {
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
        "containers": [
            {
                "command": SLEEP,
                "volumeMounts": [
                    {"name": "empty", "mountPath": "/empty"}, {"name": "mem", "mountPath": "/mem"}, {"name": "cm", "mountPath": "/cm", "readOnly": True},
                    {"name": "secret", "mountPath": "/secret"}, {"name": "down", "mountPath": "/down"}, {"name": "all", "mountPath": "/all"},
                    {"name": "host", "mountPath": "/host"}, {"name": "empty", "mountPath": "/sub", "subPath": "a/b"}, {"name": "cm", "mountPath": "/one/k", "subPath": "k"},
                ],
            }
        ],
        "volumes": [
            {"name": "empty", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "cm", "configMap": {"name": "vol", "items": [{"key": "k", "path": "k"}, {"key": "deep", "path": "x/y", "mode": 0o600}]}},
            {"name": "secret", "secret": {"secretName": "vol", "defaultMode": 0o400}},
            {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "all", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "me"}}, {"configMap": {"name": "vol", "items": [{"key": "k", "path": "cm"}]}},
                {"secret": {"name": "vol"}}, {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            ]}},
            {"name": "host", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}},
        ],
    }  # fmt: skip
    await world.create("vol", spec, labels={"a": "b"})
    await world.ready("vol")

    async def run(script: str) -> str:
        answer = await world.exec("vol", sh(script))
        assert answer.exit_code == 0, answer
        return answer.stdout.decode()

    assert await run("cat /cm/k /cm/x/y /secret/s /down/labels /all/cm /all/name /all/s /one/k") == 'v1dhiddena="b"v1volhiddenv1'
    assert (await run("id")).strip() == "uid=1000 gid=1000 groups=1000,2000"
    assert (
        await run("echo x > /empty/f; echo y > /sub/g; cat /empty/a/b/g; stat -c %g /empty/f; stat -c %a /secret/..data/s /cm/..data/x/y")
        == "y\n2000\n440\n640\n"
    )
    assert "size=1024k" in await run("grep ' /mem ' /proc/mounts")
    assert (await run("grep ' /secret ' /proc/mounts")).startswith("tmpfs")
    token = await run("cat /all/token")
    review = await world.client.create(
        "authentication.k8s.io/v1/tokenreviews",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": ["me"]}},
    )
    assert review["status"]["user"]["username"] == "system:serviceaccount:default:default"
    # what changes in the API changes in the pod, all keys at once
    await world.client.patch("v1/configmaps", "vol", {"data": {"k": "v2"}}, "default")
    await world.client.patch("v1/pods", "vol", {"metadata": {"labels": {"a": "c"}}}, "default")

    async def changed() -> bool:
        return (await run("cat /cm/k /all/cm /down/labels")) == 'v2v2a="c"'

    await until("volumes changed", changed, 10)
    uid = (await world.pod("vol"))["metadata"]["uid"]
    await world.delete("vol")
    assert not (world.config.root_dir / "pods" / uid).exists() and host.exists()


async def test_sub_path_may_not_leave_its_volume(world: World):
    host = world.directory / "tampered"
    host.mkdir()
    (host / "out").symlink_to("/etc")
    mounts = [{"name": "h", "mountPath": "/x", "subPath": "out/passwd"}]
    await world.create("escape", {"containers": [{"command": SLEEP, "volumeMounts": mounts}], "volumes": [{"name": "h", "hostPath": {"path": str(host)}}]})
    pod = await world.reaches("escape", lambda p: (container_status(p).get("state", {}).get("waiting") or {}).get("reason") == "CreateContainerConfigError")
    assert "leads out of its volume" in container_status(pod)["state"]["waiting"]["message"]
    await world.delete("escape")


async def test_security_context(world: World):
    script = (
        "id -u; grep CapEff /proc/self/status; touch /x && echo writable || echo readonly; grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status"
    )
    context = {
        "runAsUser": 1234, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    text = await world.output("locked", {"containers": [{"command": sh(script), "securityContext": context}]})
    assert text.splitlines()[0] == "1234" and "CapEff:\t0000000000000000" in text and "readonly" in text and "NoNewPrivs:\t1" in text and "Seccomp:\t2" in text
    text = await world.output(
        "free",
        {
            "containers": [
                {"command": sh("mount -t tmpfs none /mnt 2>&1 || mkdir /m && mount -t tmpfs none /m && echo mounted"), "securityContext": {"privileged": True}}
            ]
        },
    )
    assert "mounted" in text
    await world.create("root", {"restartPolicy": "Never", "containers": [{"command": ["id"], "securityContext": {"runAsNonRoot": True}}]})
    pod = await world.reaches(
        "root",
        lambda p: "waiting" in container_status(p).get("state", {}) and container_status(p)["state"]["waiting"]["reason"] == "CreateContainerConfigError",
    )
    assert "container has runAsNonRoot and image will run as root" in container_status(pod)["state"]["waiting"]["message"]
    await world.delete("root")


async def test_namespaces_dns_and_hosts(world: World):
    shown = sh("hostname; hostname -f; cat /etc/resolv.conf; cat /etc/hosts")
    spec = {"hostname": "me", "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["alias"]}], "containers": [{"command": shown}],
            "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["more.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}  # fmt: skip
    text = await world.output("names", spec)
    assert text.splitlines()[:2] == ["me", "me.sub.default.svc.cluster.local"]
    assert (
        "nameserver 10.96.0.10\nnameserver 9.9.9.9\n" in text
        and "search default.svc.cluster.local svc.cluster.local cluster.local more.example" in text.replace(" \n", "\n")
    )
    assert "options ndots:2 edns0" in text and "# Kubernetes-managed hosts file.\n" in text and "1.2.3.4\talias" in text
    host = await world.output("host", {"hostNetwork": True, "containers": [{"command": sh("ip addr; hostname; head -1 /etc/hosts")}]})
    assert NODE_IP in host and "# Kubernetes-managed hosts file (host network)." in host
    shared = {"shareProcessNamespace": True, "containers": [{"name": "a", "command": SLEEP}, {"command": sh("sleep 0.5; ps")}]}
    await world.create("shared", {"restartPolicy": "Never", **shared})
    await world.reaches("shared", lambda p: "terminated" in container_status(p).get("state", {}))
    assert "/pause" in await world.logs("shared", container="c")
    await world.delete("shared")


async def test_lifecycle_hooks_and_grace(world: World):
    host = world.directory / "hooks"
    mount = {"volumeMounts": [{"name": "h", "mountPath": "/h"}]}
    volumes = {"volumes": [{"name": "h", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}}]}
    hooks = {"postStart": {"exec": {"command": sh("echo started >> /h/log")}}, "preStop": {"exec": {"command": sh("echo stopping >> /h/log")}}}
    trap = "trap 'echo term >> /h/log; exit 0' TERM; while :; do sleep 0.1; done"
    await world.create("hooked", {"terminationGracePeriodSeconds": 20, "containers": [{"command": sh(trap), "lifecycle": hooks, **mount}], **volumes})
    await world.ready("hooked")
    await world.delete("hooked")
    assert (host / "log").read_text() == "started\nstopping\nterm\n"
    await world.create("badhook", {"containers": [{"command": SLEEP, "lifecycle": {"postStart": {"exec": {"command": ["false"]}}}}]})
    await world.has_event("badhook", "FailedPostStartHook", "PostStartHook failed")
    await world.reaches("badhook", lambda p: container_status(p).get("restartCount", 0) >= 1)
    await world.delete("badhook")
    await world.create("stubborn", {"terminationGracePeriodSeconds": 300, "containers": [{"command": sh("trap '' TERM; while :; do sleep 1; done")}]})
    await world.ready("stubborn")
    await world.client.delete("v1/pods", "stubborn", "default")
    await world.reaches("stubborn", lambda p: p["metadata"].get("deletionTimestamp"))
    await world.client.delete("v1/pods", "stubborn", "default", grace_seconds=1)  # the grace may be shortened
    await until("stubborn gone", lambda: world._gone("stubborn"), 10)


async def test_image_change_restarts_the_container_in_place(world: World):
    await world.create("swap", {"containers": [{"image": "nginx:1.25"}]})
    before = await world.ready("swap")
    await world.client.patch("v1/pods", "swap", [{"op": "replace", "path": "/spec/containers/0/image", "value": "nginx:1.26"}], "default", kind="json")
    pod = await world.reaches("swap", lambda p: container_status(p).get("image", "").endswith("nginx:1.26") and container_status(p)["ready"])
    assert container_status(pod)["restartCount"] == 1 and pod["status"]["podIP"] == before["status"]["podIP"]
    await world.has_event("swap", "Killing", "Container c definition changed, will be restarted")
    await world.delete("swap")


async def test_image_pull_failures(world: World):
    await world.create("nopull", {"containers": [{"image": "registry.invalid/none:1"}, {"name": "never", "image": "none:2", "imagePullPolicy": "Never"}]})
    pod = await world.reaches("nopull", lambda p: (container_status(p).get("state", {}).get("waiting") or {}).get("reason") == "ImagePullBackOff")
    assert container_status(pod)["state"]["waiting"]["message"] == 'Back-off pulling image "registry.invalid/none:1"'
    assert container_status(pod, "never")["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    await world.has_event("nopull", "Failed", "Error: ErrImagePull")
    assert pod["status"]["phase"] == "Pending"
    await world.delete("nopull")


async def test_admission_rejects(world: World):
    await world.create("toobig", {"containers": [{"command": SLEEP, "resources": {"requests": {"cpu": "1000"}}}]})
    await world.create("elsewhere", {"nodeSelector": {"disk": "none"}, "containers": [{"command": SLEEP}]})
    big, elsewhere = await world.ended("toobig"), await world.ended("elsewhere")
    assert big["status"]["reason"] == "OutOfcpu"
    assert big["status"]["message"].startswith("Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ")
    assert elsewhere["status"]["reason"] == "NodeAffinity"
    await world.delete("toobig", "elsewhere")


async def test_sandbox_dies_and_is_made_again(world: World):
    await world.create("reborn", {"containers": [{"command": SLEEP}]})
    pod = await world.ready("reborn")
    sandbox = world.agent.view.get(pod["metadata"]["uid"]).sandbox
    await world.agent.cri.stop_sandbox(sandbox.id)
    await world.reaches("reborn", lambda p: container_status(p).get("restartCount", 0) >= 1 and condition_of(p, "Ready") == "True")
    assert world.agent.view.get(pod["metadata"]["uid"]).sandbox.attempt == 1
    await world.delete("reborn")


async def test_restarts_of_agent_and_runtime_leave_containers_alone(world: World):
    await world.create("steady", {"containers": [{"image": "nginx:1.25", "readinessProbe": {"httpGet": {"port": 80}}}]})
    before = container_status(await world.ready("steady"))
    await world.create("doomed", {"containers": [{"command": SLEEP}]})
    await world.ready("doomed")
    await world.stop_agent()
    await world.client.delete("v1/pods", "doomed", "default", grace_seconds=0)  # gone while nobody looked
    await world.start_agent()
    await until("orphan ended", lambda: world._gone("doomed"))
    pod = await world.ready("steady")
    assert container_status(pod) == before
    await world.containerd.stop()
    await asyncio.sleep(0.2)
    await world.containerd.start()
    await until("runtime answers again", lambda: not world.agent.view.error)
    await world.agent.view.refresh()
    assert container_status(await world.ready("steady")) == before
    await world.create("after", {"containers": [{"command": SLEEP}]})
    await world.ready("after")
    await world.delete("steady", "after")


async def test_static_pods_and_their_mirrors(world: World):
    manifest = world.config.static_pod_path / "static.yaml"
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: still}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: c, image: 'busybox:1.36', command: [sleep, '%d']}\n"
    manifest.write_text(text % 3600)
    name = f"still-{NODE}"
    pod = await world.ready(name)
    annotations = pod["metadata"]["annotations"]
    assert annotations["kubernetes.io/config.source"] == "file" and annotations["kubernetes.io/config.mirror"] == annotations["kubernetes.io/config.hash"]
    assert pod["metadata"]["ownerReferences"][0]["kind"] == "Node"
    await world.client.delete("v1/pods", name, "default")  # the mirror comes back, the containers never noticed
    again = await world.reaches(name, lambda p: p["metadata"]["uid"] != pod["metadata"]["uid"] and condition_of(p, "Ready") == "True")
    assert container_status(again)["containerID"] == container_status(pod)["containerID"]
    manifest.write_text(text % 3601)
    await world.reaches(
        name,
        lambda p: p["metadata"]["annotations"]["kubernetes.io/config.hash"] != annotations["kubernetes.io/config.hash"] and condition_of(p, "Ready") == "True",
    )
    (world.config.static_pod_path / "broken.yaml").write_text("kind: Nonsense")
    manifest.unlink()
    await until("static pod gone", lambda: world._gone(name))


async def test_node_object_and_lease(world: World):
    node = await world.client.get("v1/nodes", NODE)
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == NODE and node["metadata"]["labels"]["kubernetes.io/os"] == "linux"
    status = node["status"]
    assert set(status["capacity"]) >= {"cpu", "memory", "pods", "ephemeral-storage"} and status["allocatable"]["pods"] == "110"
    assert (
        status["nodeInfo"]["containerRuntimeVersion"].startswith("containerd://") and status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == world.config.port
    )
    assert any("docker.io/library/nginx:1.25" in i["names"] for i in status["images"])
    lease = await world.client.get("coordination.k8s.io/v1/leases", NODE, "kube-node-lease")
    assert lease["spec"]["holderIdentity"] == NODE and lease["spec"]["leaseDurationSeconds"] == 40


async def test_host_port(world: World):
    await world.create(
        "hostport", {"containers": [{"image": "nginx:1.25", "ports": [{"containerPort": 80, "hostPort": 21580}], "readinessProbe": {"httpGet": {"port": 80}}}]}
    )
    await world.ready("hostport")
    reader, writer = await asyncio.open_connection(NODE_IP, 21580)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert b"200 OK" in await reader.read(4096)
    writer.close()
    await world.delete("hostport")


async def test_resize_in_place(world: World):
    policy = [{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    await world.create(
        "resized",
        {
            "containers": [
                {
                    "command": SLEEP,
                    "resizePolicy": policy,
                    "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
                }
            ]
        },
    )
    before = container_status(await world.ready("resized"))
    assert before["allocatedResources"] == {"cpu": "100m", "memory": "32Mi"}

    async def resize(**resources: dict) -> None:
        await world.client.patch(
            "v1/pods", "resized", {"spec": {"containers": [{"name": "c", "resources": resources}]}}, "default", kind="strategic", subresource="resize"
        )

    await resize(requests={"cpu": "150m"}, limits={"cpu": "300m"})
    pod = await world.reaches("resized", lambda p: container_status(p).get("resources", {}).get("limits", {}).get("cpu") == "300m")
    assert container_status(pod)["containerID"] == before["containerID"] and container_status(pod)["restartCount"] == 0
    quota = await world.exec("resized", ["cat", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"])
    assert quota.exit_code or quota.stdout == b"30000\n"  # the file is elsewhere under cgroup v2
    await resize(limits={"memory": "128Mi"})
    await world.reaches("resized", lambda p: container_status(p).get("resources", {}).get("limits", {}).get("memory") == "128Mi")
    assert container_status(await world.pod("resized"))["restartCount"] == 1
    await resize(requests={"cpu": "900"}, limits={"cpu": "900"})
    pod = await world.reaches("resized", lambda p: condition_of(p, "PodResizePending") == "True")
    assert next(c["reason"] for c in pod["status"]["conditions"] if c["type"] == "PodResizePending") == "Infeasible"
    await resize(requests={"cpu": "100m"}, limits={"cpu": "200m"})
    await world.reaches("resized", lambda p: not condition_of(p, "PodResizePending") and container_status(p)["resources"]["limits"]["cpu"] == "200m")
    await world.delete("resized")


async def test_ephemeral_container(world: World):
    await world.create("debugged", {"containers": [{"command": SLEEP}]})
    await world.ready("debugged")
    debugger = {"name": "debug", "image": "busybox:1.36", "command": ["sh", "-c", "ps; sleep 3600"], "targetContainerName": "c"}
    await world.client.patch(
        "v1/pods", "debugged", {"spec": {"ephemeralContainers": [debugger]}}, "default", kind="strategic", subresource="ephemeralcontainers"
    )
    await world.reaches("debugged", lambda p: "running" in container_status(p, "debug", "ephemeralContainerStatuses").get("state", {}))
    await until("debugger sees its target", lambda: _logged(world, "debugged", "debug", "sleep 3600"))
    await world.delete("debugged")


async def _logged(world: World, pod: str, container: str, text: str) -> bool:
    return text in await world.logs(pod, container=container)


async def test_persistent_volume_of_a_host_path(world: World):
    path = world.directory / "pv"
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(path)}, "claimRef": {"namespace": "default", "name": "claim"}}}  # fmt: skip
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "pv", "storageClassName": ""}}  # fmt: skip
    await world.client.create("v1/persistentvolumes", volume)
    made = await world.client.create("v1/persistentvolumeclaims", claim, "default")
    spec = {"restartPolicy": "Never", "containers": [{"command": ["sh", "-c", "echo kept > /data/x"], "volumeMounts": [{"name": "d", "mountPath": "/data"}]}], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "claim"}}]}  # fmt: skip
    await world.create("claims", spec)
    await world.has_event("claims", "FailedMount", 'PVC "default/claim" is not bound')
    await world.client.update("v1/persistentvolumeclaims", {**made, "status": {"phase": "Bound"}}, subresource="status")
    await world.ended("claims")
    await world.delete("claims")
    assert (path / "x").read_text() == "kept\n"


async def test_eviction_under_pressure(world: World):
    await world.create("modest", {"containers": [{"command": SLEEP, "resources": {"requests": {"memory": "1Gi"}}}]})
    await world.create("greedy", {"containers": [{"command": SLEEP}]})
    await world.ready("modest")
    await world.ready("greedy")
    eviction = world.agent.eviction
    kept, eviction.hard = eviction.hard, {"memory.available": "100000Gi"}
    try:
        await eviction.round()
        pod = await world.ended("greedy")
        assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "Evicted")
        assert pod["status"]["message"].startswith("The node was low on resource: memory. Threshold quantity: ")
        assert condition_of(pod, "DisruptionTarget") == "True"
        await world.create("besteffort", {"containers": [{"command": SLEEP}]})
        assert (await world.ended("besteffort"))["status"]["message"] == "Pod was rejected: The node had condition: [MemoryPressure]. "

        async def shown() -> bool:
            return condition_of(await world.client.get("v1/nodes", NODE), "MemoryPressure") == "True"

        await until("pressure shown", shown, 10)
        assert condition_of(await world.pod("modest"), "Ready") == "True"  # one a round, and it used less than it asked for
    finally:
        eviction.hard = kept
        eviction._until.clear()
    await world.delete("modest", "greedy", "besteffort")
