"""The functions that Kubernetes adds to CEL (k8s.io/apiserver/pkg/cel/library): lists, regular expressions, quantities, IPs and CIDRs, URLs, semver."""

from __future__ import annotations

from typing import Any

FUNCTIONS: list[Any] = []
