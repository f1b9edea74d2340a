"""A kopf operator: each Note becomes a ConfigMap of its own, owned by the note."""

import kopf
import kubernetes


@kopf.on.create("example.dev", "v1", "notes")
def made(spec, name, namespace, **_):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"note-{name}"}, "data": {"text": spec["text"]}}
    kopf.adopt(body)
    kubernetes.config.load_kube_config()
    kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, body)
    return {"configMap": body["metadata"]["name"]}


@kopf.on.update("example.dev", "v1", "notes", field="spec.text")
def changed(new, name, namespace, **_):
    kubernetes.config.load_kube_config()
    kubernetes.client.CoreV1Api().patch_namespaced_config_map(f"note-{name}", namespace, {"data": {"text": new}})
