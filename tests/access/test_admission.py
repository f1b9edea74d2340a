"""Each admission plugin through the real pipeline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastkube.server.request import User
from tests.access.conftest import ADMIN, Cluster, pod

PODS = "/api/v1/namespaces/default/pods"


async def message(cluster: Cluster, path: str, body: dict[str, Any], status: int = 403, **more: Any) -> str:
    got, answer = await cluster.call("POST", path, body, **more)
    assert got == status, answer
    return answer["message"]


# -- namespaces -------------------------------------------------------------------------------------------------------------------------------


async def test_namespaces_must_be_there_and_some_stay(cluster: Cluster) -> None:
    assert await message(cluster, "/api/v1/namespaces/nowhere/configmaps", {"metadata": {"name": "c"}}, 404) == 'namespaces "nowhere" not found'
    for name in ("default", "kube-system", "kube-public"):
        status, answer = await cluster.call("DELETE", f"/api/v1/namespaces/{name}")
        assert (status, answer["message"]) == (403, f'namespaces "{name}" is forbidden: this namespace may not be deleted')


async def test_no_new_content_for_a_namespace_that_goes(cluster: Cluster) -> None:
    await cluster.namespace("going")
    await cluster.make("/api/v1/namespaces/going/configmaps", {"metadata": {"name": "old"}})
    stored = (await cluster.call("GET", "/api/v1/namespaces/going"))[1]
    stored["spec"] = {"finalizers": ["kubernetes"]}
    status, answer = await cluster.call("DELETE", "/api/v1/namespaces/going")
    if status == 200 and (await cluster.call("GET", "/api/v1/namespaces/going"))[0] == 404:
        pytest.fail(f"the namespace had no finalizer: {answer}")
    status, answer = await cluster.call("POST", "/api/v1/namespaces/going/configmaps", {"metadata": {"name": "new"}})
    assert (
        status == 403 and answer["message"] == 'configmaps "new" is forbidden: unable to create new content in namespace going because it is being terminated'
    )
    assert answer["details"]["causes"] == [{"reason": "NamespaceTerminating", "message": "namespace going is being terminated", "field": "metadata.namespace"}]
    assert (await cluster.call("PATCH", "/api/v1/namespaces/going/configmaps/old", {"data": {"a": "b"}}))[0] == 200
    assert (await cluster.call("DELETE", "/api/v1/namespaces/going/configmaps/old"))[0] == 200


# -- service accounts -------------------------------------------------------------------------------------------------------------------------


async def test_pods_get_their_account_and_its_token(cluster: Cluster) -> None:
    await cluster.make("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}, "imagePullSecrets": [{"name": "pull"}]})
    made = await cluster.make(PODS, pod(initContainers=[{"name": "i", "image": "i"}]))
    spec = made["spec"]
    assert spec["serviceAccountName"] == spec["serviceAccount"] == "default" and spec["imagePullSecrets"] == [{"name": "pull"}]
    (volume,) = spec["volumes"]
    assert volume["name"].startswith("kube-api-access-")
    assert volume["projected"] == {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
            {"downwardAPI": {"items": [{"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}]}},
        ],
    }
    mount = {"name": volume["name"], "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    assert spec["containers"][0]["volumeMounts"] == [mount] == spec["initContainers"][0]["volumeMounts"]


async def test_who_wants_no_token_gets_none(cluster: Cluster) -> None:
    await cluster.make("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}, "automountServiceAccountToken": False})
    assert "volumes" not in (await cluster.make(PODS, pod("a")))["spec"]
    assert "volumes" in (await cluster.make(PODS, pod("b", automountServiceAccountToken=True)))["spec"]
    own = {"name": "mine", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    busy = pod("c", automountServiceAccountToken=True, volumes=[{"name": "mine", "emptyDir": {}}])
    busy["spec"]["containers"][0]["volumeMounts"] = [own]
    assert [v["name"] for v in (await cluster.make(PODS, busy))["spec"]["volumes"]] == ["mine"]


async def test_an_account_that_is_not_there(cluster: Cluster) -> None:
    text = await message(cluster, PODS, pod(serviceAccountName="gone"))
    assert text == 'pods "p" is forbidden: error looking up service account default/gone: serviceaccount "gone" not found'


async def test_a_pod_waits_for_the_default_account_of_its_new_namespace(cluster: Cluster) -> None:
    creating = asyncio.ensure_future(cluster.call("POST", PODS, pod()))
    await asyncio.sleep(0.05)
    assert not creating.done()
    await cluster.account()
    assert (await creating)[0] == 201


# -- priority, tolerations, runtime classes ---------------------------------------------------------------------------------------------------


async def test_priority(cluster: Cluster) -> None:
    await cluster.account()
    classes = "/apis/scheduling.k8s.io/v1/priorityclasses"
    made = await cluster.make(PODS, pod("none"))
    assert (made["spec"]["priority"], made["spec"]["preemptionPolicy"]) == (0, "PreemptLowerPriority")
    await cluster.make(classes, {"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"})
    made = await cluster.make(PODS, pod("high", priorityClassName="high"))
    assert (made["spec"]["priority"], made["spec"]["preemptionPolicy"]) == (1000, "Never")
    assert (await cluster.make(PODS, pod("sys", priorityClassName="system-node-critical")))["spec"]["priority"] == 2000001000
    assert await message(cluster, PODS, pod("x", priorityClassName="gone")) == 'pods "x" is forbidden: no PriorityClass with name gone was found'
    assert "must not be provided in pod spec; priority admission controller computed 0" in await message(cluster, PODS, pod("x", priority=7))
    assert "computed Never" in await message(cluster, PODS, pod("x", priorityClassName="high", preemptionPolicy="PreemptLowerPriority"))
    await cluster.make(classes, {"metadata": {"name": "usual"}, "value": 5, "globalDefault": True})
    made = await cluster.make(PODS, pod("usual"))
    assert (made["spec"]["priority"], made["spec"]["priorityClassName"]) == (5, "usual")
    text = await message(cluster, classes, {"metadata": {"name": "second"}, "value": 6, "globalDefault": True})
    assert text == 'priorityclasses.scheduling.k8s.io "second" is forbidden: PriorityClass usual is already marked as default. Only one default can exist'


async def test_default_tolerations(cluster: Cluster) -> None:
    await cluster.account()

    def default(key: str) -> dict[str, Any]:
        return {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}

    assert (await cluster.make(PODS, pod("a")))["spec"]["tolerations"] == [default("not-ready"), default("unreachable")]
    own = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    assert (await cluster.make(PODS, pod("b", tolerations=[own])))["spec"]["tolerations"] == [own, default("unreachable")]
    everything = {"operator": "Exists"}
    assert (await cluster.make(PODS, pod("c", tolerations=[everything])))["spec"]["tolerations"] == [everything]
    schedule = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}
    assert len((await cluster.make(PODS, pod("d", tolerations=[schedule])))["spec"]["tolerations"]) == 3


async def test_runtime_classes(cluster: Cluster) -> None:
    await cluster.account()
    scheduling = {"nodeSelector": {"sandbox": "yes"}, "tolerations": [{"key": "sandbox", "operator": "Exists"}]}
    body = {"metadata": {"name": "kata"}, "handler": "kata", "overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": scheduling}
    await cluster.make("/apis/node.k8s.io/v1/runtimeclasses", body)
    spec = (await cluster.make(PODS, pod("a", runtimeClassName="kata", nodeSelector={"own": "1"})))["spec"]
    assert spec["overhead"] == {"cpu": "250m"} and spec["nodeSelector"] == {"own": "1", "sandbox": "yes"}
    assert {"key": "sandbox", "operator": "Exists"} in spec["tolerations"]
    assert await message(cluster, PODS, pod("b", runtimeClassName="gone")) == 'pods "b" is forbidden: pod rejected: RuntimeClass "gone" not found'
    assert "conflict" in await message(cluster, PODS, pod("b", runtimeClassName="kata", nodeSelector={"sandbox": "no"}))
    assert "Overhead" in await message(cluster, PODS, pod("b", overhead={"cpu": "1"}))


async def test_bound_pods_know_their_zone(cluster: Cluster) -> None:
    await cluster.account()
    zone = {"topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1"}
    await cluster.make("/api/v1/nodes", {"metadata": {"name": "n1", "labels": {**zone, "other": "x"}}})
    await cluster.make(PODS, pod("later"))
    status, _ = await cluster.call("POST", f"{PODS}/later/binding", {"metadata": {"name": "later"}, "target": {"kind": "Node", "name": "n1"}})
    assert status == 201
    assert (await cluster.call("GET", f"{PODS}/later"))[1]["metadata"]["labels"] == zone
    assert (await cluster.make(PODS, pod("now", nodeName="n1")))["metadata"]["labels"] == zone
    assert "labels" not in (await cluster.make(PODS, pod("nowhere", nodeName="gone")))["metadata"]


# -- storage and ingress ----------------------------------------------------------------------------------------------------------------------


def claim(name: str, size: str = "1Gi", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec}}


async def test_claims_get_the_default_class_and_a_guard(cluster: Cluster) -> None:
    classes, claims = "/apis/storage.k8s.io/v1/storageclasses", "/api/v1/namespaces/default/persistentvolumeclaims"
    assert "storageClassName" not in (await cluster.make(claims, claim("a")))["spec"]
    for name in ("b-class", "a-class"):
        marked = {"storageclass.kubernetes.io/is-default-class": "true"}
        await cluster.make(classes, {"metadata": {"name": name, "annotations": marked}, "provisioner": "p", "allowVolumeExpansion": name == "a-class"})
    made = await cluster.make(claims, claim("b"))
    assert made["spec"]["storageClassName"] == "a-class" and made["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert (await cluster.make(claims, claim("c", storageClassName="")))["spec"]["storageClassName"] == ""


async def test_ingresses_get_the_default_class(cluster: Cluster) -> None:
    path, backend = "/apis/networking.k8s.io/v1/namespaces/default/ingresses", {"service": {"name": "s", "port": {"number": 80}}}
    marked = {"ingressclass.kubernetes.io/is-default-class": "true"}
    await cluster.make(
        "/apis/networking.k8s.io/v1/ingressclasses", {"metadata": {"name": "web", "annotations": marked}, "spec": {"controller": "example.com/c"}}
    )
    assert (await cluster.make(path, {"metadata": {"name": "i"}, "spec": {"defaultBackend": backend}}))["spec"]["ingressClassName"] == "web"
    old = {"metadata": {"name": "j", "annotations": {"kubernetes.io/ingress.class": "other"}}, "spec": {"defaultBackend": backend}}
    assert "ingressClassName" not in (await cluster.make(path, old))["spec"]


# -- limit ranges -----------------------------------------------------------------------------------------------------------------------------


def sized(name: str, **resources: dict[str, str]) -> dict[str, Any]:
    obj = pod(name)
    obj["spec"]["containers"][0]["resources"] = resources
    return obj


async def test_limit_ranges_fill_in_and_hold(cluster: Cluster) -> None:
    await cluster.account()
    limits = [
        {"type": "Container", "defaultRequest": {"cpu": "100m", "memory": "64Mi"}, "default": {"cpu": "500m"}, "min": {"cpu": "50m"}, "max": {"cpu": "1"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}},
    ]
    await cluster.make("/api/v1/namespaces/default/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": limits}})
    made = await cluster.make(PODS, pod("a"))
    assert made["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m"}}
    assert (
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"]
        == "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
    )
    small = await message(cluster, PODS, sized("b", requests={"cpu": "10m"}))
    assert small == 'pods "b" is forbidden: minimum cpu usage per Container is 50m, but request is 10m'
    big = await message(cluster, PODS, sized("b", limits={"cpu": "3"}))
    assert big == 'pods "b" is forbidden: maximum cpu usage per Container is 1, but limit is 3'
    claims = "/api/v1/namespaces/default/persistentvolumeclaims"
    assert "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi" in await message(cluster, claims, claim("x", "500Mi"))
    assert "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi" in await message(cluster, claims, claim("x", "3Gi"))
    await cluster.make(claims, claim("x", "2Gi"))


async def test_ratios_and_whole_pods(cluster: Cluster) -> None:
    await cluster.account()
    limits = [{"type": "Pod", "max": {"memory": "1Gi"}}, {"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}]
    await cluster.make("/api/v1/namespaces/default/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": limits}})
    text = await message(cluster, PODS, sized("a", requests={"cpu": "100m"}, limits={"cpu": "500m", "memory": "2Gi"}))
    assert text == (
        'pods "a" is forbidden: [maximum memory usage per Pod is 1Gi, but limit is 2Gi, '
        "cpu max limit to request ratio per Container is 2, but provided ratio is 5.000000]"
    )
    await cluster.make(PODS, sized("a", requests={"cpu": "100m"}, limits={"cpu": "200m", "memory": "1Gi"}))


# -- pod security -----------------------------------------------------------------------------------------------------------------------------


async def test_pod_security_by_level(cluster: Cluster) -> None:
    for level in ("baseline", "restricted"):
        await cluster.namespace(level, {"pod-security.kubernetes.io/enforce": level})
    host = pod("h", hostNetwork=True, hostPID=True)
    host["spec"]["containers"][0] |= {
        "securityContext": {"privileged": True, "capabilities": {"add": ["NET_ADMIN", "CHOWN"]}},
        "ports": [{"containerPort": 80, "hostPort": 80}],
    }
    assert await message(cluster, "/api/v1/namespaces/baseline/pods", host) == (
        'pods "h" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities (container "c" must not include "NET_ADMIN" in '
        'securityContext.capabilities.add), host namespaces (hostNetwork=true, hostPID=true), hostPort (container "c" uses hostPort 80), '
        'privileged (container "c" must not set securityContext.privileged=true)'
    )
    await cluster.make("/api/v1/namespaces/baseline/pods", pod())
    assert 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false' in await message(cluster, "/api/v1/namespaces/restricted/pods", pod())
    good = pod("g", securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}})
    good["spec"]["containers"][0]["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    await cluster.make("/api/v1/namespaces/restricted/pods", good)
    await cluster.account()
    await cluster.make(PODS, host)


async def test_pod_security_warns_of_templates_and_of_pods_that_are_there(cluster: Cluster) -> None:
    await cluster.namespace("w", {"pod-security.kubernetes.io/warn": "baseline"})
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {**pod()["spec"], "hostIPC": True}}
    deployment = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}
    status, _, answer = await cluster.raw("POST", "/apis/apps/v1/namespaces/w/deployments", deployment, user=ADMIN)
    assert status == 201 and any("would violate PodSecurity" in w and "host namespaces (hostIPC=true)" in w for w in cluster.warnings(answer))
    for name in ("one", "two"):
        await cluster.make("/api/v1/namespaces/w/pods", pod(name, hostNetwork=True))
    status, _, answer = await cluster.raw(
        "PATCH", "/api/v1/namespaces/w", {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}, user=ADMIN
    )
    texts = cluster.warnings(answer)
    assert status == 200 and any('existing pods in namespace \\"w\\" violate the new PodSecurity enforce level' in t for t in texts), texts
    assert any("one (and 1 other pod): host namespaces" in t for t in texts), texts


async def test_pod_security_labels_are_checked(cluster: Cluster) -> None:
    bad = {"metadata": {"name": "q", "labels": {"pod-security.kubernetes.io/enforce": "strange"}}}
    status, answer = await cluster.call("POST", "/api/v1/namespaces", bad)
    assert (
        status == 422
        and 'metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strange": must be one of privileged, baseline, restricted'
        in answer["message"]
    )


# -- certificates -----------------------------------------------------------------------------------------------------------------------------


def test_the_subject_of_a_request_is_read() -> None:
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    from fastkube.server.admission.certificates import organizations

    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"), x509.NameAttribute(NameOID.COMMON_NAME, "joe")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    assert organizations({"request": base64.b64encode(request.public_bytes(Encoding.PEM)).decode()}) == ["system:masters"]
    assert organizations({"request": "bm9uc2Vuc2U="}) == [] == organizations({})


async def test_nobody_asks_for_a_masters_certificate(cluster: Cluster) -> None:
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    def csr(name: str, *groups: str) -> dict[str, Any]:
        attributes = [*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups), x509.NameAttribute(NameOID.COMMON_NAME, "joe")]
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes)).sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
        encoded = base64.b64encode(request.public_bytes(Encoding.PEM)).decode()
        return {"metadata": {"name": name}, "spec": {"request": encoded, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}}

    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    text = await message(cluster, path, csr("a", "system:masters"))
    assert (
        text
        == 'certificatesigningrequests.certificates.k8s.io "a" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed'
    )
    made = await cluster.make(path, csr("b", "devs"))
    # approving takes the right on the signer beside the right on the subresource
    rules = [
        {"verbs": ["update", "get"], "apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval", "certificatesigningrequests"]}
    ]
    ref = "rbac.authorization.k8s.io"
    await cluster.make(f"/apis/{ref}/v1/clusterroles", {"metadata": {"name": "approver"}, "rules": rules})
    subject = {"kind": "User", "apiGroup": ref, "name": "joe"}
    await cluster.make(
        f"/apis/{ref}/v1/clusterrolebindings",
        {"metadata": {"name": "approver"}, "roleRef": {"apiGroup": ref, "kind": "ClusterRole", "name": "approver"}, "subjects": [subject]},
    )
    made["status"] = {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}
    joe = User("joe", ("system:authenticated",))
    status, answer = await cluster.call("PUT", f"{path}/b/approval", made, user=joe)
    assert status == 403 and 'user not permitted to approve requests with signerName "kubernetes.io/kube-apiserver-client"' in answer["message"]
    more = [*rules, {"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["kubernetes.io/*"]}]
    await cluster.call("PATCH", f"/apis/{ref}/v1/clusterroles/approver", {"rules": more})
    assert (await cluster.call("PUT", f"{path}/b/approval", made, user=joe))[0] == 200
