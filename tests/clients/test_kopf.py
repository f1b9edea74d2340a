"""A kopf operator runs against it: a custom resource, finalizers, status, events, owner references."""

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.cluster import wait_for

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: notes.example.dev}
spec:
  group: example.dev
  scope: Namespaced
  names: {plural: notes, singular: note, kind: Note, shortNames: [nt]}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              required: [text]
              properties: {text: {type: string, maxLength: 100}}
            status: {type: object, x-kubernetes-preserve-unknown-fields: true}
      additionalPrinterColumns:
        - {name: Text, type: string, jsonPath: .spec.text}
"""
NOTE = "apiVersion: example.dev/v1\nkind: Note\nmetadata: {name: one, namespace: default}\nspec: {text: %s}\n"


def test_operator(hollow, tmp_path):
    hollow.kubectl("apply", "-f", "-", stdin=CRD)
    hollow.kubectl("wait", "--for=condition=Established", "crd/notes.example.dev", "--timeout=20s")
    log = open(tmp_path / "kopf.log", "w+")  # noqa: SIM115
    operator = subprocess.Popen(
        [sys.executable, "-m", "kopf", "run", "--namespace=default", "--standalone", str(Path(__file__).with_name("operator_handlers.py"))],
        env=hollow.environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        hollow.kubectl("apply", "-f", "-", stdin=NOTE % "hello")
        get = lambda *a: json.loads(hollow.kubectl("get", *a, "-o", "json"))  # noqa: E731
        wait_for("the operator made the ConfigMap", lambda: get("configmap", "note-one")["data"] == {"text": "hello"}, 40)
        wait_for("status", lambda: get("note", "one")["status"]["made"]["configMap"] == "note-one", 20)
        assert hollow.kubectl("get", "nt").split()[:3] == ["NAME", "TEXT", "one"]
        hollow.kubectl("apply", "-f", "-", stdin=NOTE % "changed")
        wait_for("the operator saw the change", lambda: get("configmap", "note-one")["data"] == {"text": "changed"}, 30)
        refused = hollow.kubectl("patch", "note", "one", "--type=merge", "-p", '{"spec":{"text":5}}', check=False)
        assert "spec.text" in refused and "Invalid value" in refused
        hollow.kubectl("delete", "note", "one", "--timeout=30s")
        wait_for("its ConfigMap is collected", lambda: "NotFound" in hollow.kubectl("get", "configmap", "note-one", check=False), 40)
    finally:
        operator.terminate()
        operator.wait(20)
        log.seek(0)
        print(log.read()[-3000:])
        log.close()
    hollow.kubectl("delete", "crd", "notes.example.dev", "--timeout=30s")
    wait_for("the resource is gone", lambda: "NotFound" in hollow.kubectl("get", "--raw", "/apis/example.dev/v1/notes", check=False), 20)
