"""A pod of 5 KB as clients send it: two containers with environment, probes, mounts, resources, an init container, affinity, tolerations, volumes."""

from __future__ import annotations

from typing import Any

import orjson


def _container(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "image": f"registry.example.com/team/{name}:v1.24.3",
        "args": ["--config=/etc/app/config.yaml", "--listen=0.0.0.0", f"--port={port}", "--log-format=json"],
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}, {"name": "metrics", "containerPort": port + 1, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{i}", "value": f"value-number-{i}"} for i in range(5)]
        + [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}},
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/app", "readOnly": True},
            {"name": "data", "mountPath": "/var/lib/app"},
            {"name": "kube-api-access-x2x5p", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "initialDelaySeconds": 10,
            "timeoutSeconds": 2,
            "periodSeconds": 10,
        },
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 5, "failureThreshold": 3},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullPolicy": "IfNotPresent",
    }


def pod(name: str = "web-7c5ddbdf54-4xk2p") -> dict[str, Any]:
    labels = {"app": "web", "pod-template-hash": "7c5ddbdf54", "app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "tier": "frontend"}
    init = _container("migrate", 9000)
    for key in ("livenessProbe", "readinessProbe", "ports"):
        del init[key]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": "web-7c5ddbdf54-",
            "namespace": "shop",
            "labels": labels,
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "8081",
                "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            },
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "web-7c5ddbdf54",
                    "uid": "2b4f9a0e-64c3-4f7c-9d4b-1b5a2f9a7c11",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "initContainers": [init],
            "containers": [_container("web", 8080), _container("proxy", 9090)],
            "volumes": [
                {"name": "config", "configMap": {"name": "web-config", "defaultMode": 420}},
                {"name": "data", "emptyDir": {"sizeLimit": "1Gi"}},
                {
                    "name": "kube-api-access-x2x5p",
                    "projected": {
                        "sources": [
                            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                        ],
                        "defaultMode": 420,
                    },
                },
            ],
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 100, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}}
                    ]
                }
            },
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "serviceAccountName": "web",
            "terminationGracePeriodSeconds": 30,
            "restartPolicy": "Always",
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    }


BODY = orjson.dumps(pod())
