"""Audit: who did what, and what came of it (https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/).

The pipeline tells the auditor of a request as soon as it is known who asks, and of its answer; the policy decides how much of it is written down and the
backends get events as JSON lines. Laws:

- Without a policy there is no auditor, and a request pays nothing.
- A body is part of an event only where the policy says so: Secrets in the log are the policy's doing.
- One request has one audit ID, the one in its answer's Audit-Id header.
"""

from fastkube.server.audit.auditor import Auditor, Config, annotate, build

__all__ = ["Auditor", "Config", "annotate", "build"]
