"""The official Python client, unchanged: lists, watches, creates, patches, deletes."""

import pytest
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient


@pytest.fixture(scope="module")
def api(hollow):
    return config.new_client_from_config(str(hollow.kubeconfig))


def labelled(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"t": "python"}), data=data)


def test_create_read_patch_replace_list_delete(api):
    v1 = client.CoreV1Api(api)
    made = v1.create_namespaced_config_map("default", labelled("py", a="1"))
    assert made.metadata.uid and made.metadata.resource_version
    assert v1.patch_namespaced_config_map("py", "default", {"data": {"b": "2"}}).data == {"a": "1", "b": "2"}
    made = v1.read_namespaced_config_map("py", "default")
    made.data["a"] = "3"
    assert v1.replace_namespaced_config_map("py", "default", made).data["a"] == "3"
    with pytest.raises(ApiException) as stale:
        v1.replace_namespaced_config_map("py", "default", made)
    assert stale.value.status == 409
    assert [c.metadata.name for c in v1.list_namespaced_config_map("default", label_selector="t=python").items] == ["py"]
    v1.delete_namespaced_config_map("py", "default")
    with pytest.raises(ApiException) as gone:
        v1.read_namespaced_config_map("py", "default")
    assert gone.value.status == 404 and gone.value.reason == "Not Found"


def test_watch_from_a_list(api):
    v1 = client.CoreV1Api(api)
    version = v1.list_namespaced_config_map("default").metadata.resource_version
    v1.create_namespaced_config_map("default", labelled("seen", a="1"))
    v1.patch_namespaced_config_map("seen", "default", {"data": {"a": "2"}})
    v1.delete_namespaced_config_map("seen", "default")
    seen = []
    for event in watch.Watch().stream(v1.list_namespaced_config_map, "default", resource_version=version, label_selector="t=python", timeout_seconds=20):
        seen.append((event["type"], event["object"].data["a"]))
        if event["type"] == "DELETED":
            break
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]


def test_a_deployment_comes_up(api):
    apps = client.AppsV1Api(api)
    labels = {"app": "py"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="registry.k8s.io/pause:3.10")])
    )
    spec = client.V1DeploymentSpec(replicas=3, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec))
    for event in watch.Watch().stream(apps.list_namespaced_deployment, "default", field_selector="metadata.name=py", timeout_seconds=60):
        if event["object"].status.ready_replicas == 3:
            break
    else:
        pytest.fail("not ready in time")
    assert len(client.CoreV1Api(api).list_namespaced_pod("default", label_selector="app=py").items) == 3
    scale = apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 1}})
    assert scale.spec.replicas == 1
    apps.delete_namespaced_deployment("py", "default", propagation_policy="Foreground")


def test_dynamic_client_finds_resources_by_discovery(api):
    dynamic = DynamicClient(api)
    nodes = dynamic.resources.get(api_version="v1", kind="Node")
    assert len(nodes.get().items) == 2
