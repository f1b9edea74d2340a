"""The group apiextensions.k8s.io."""

from fastkube.api.crd import CustomResourceDefinition

KINDS = [CustomResourceDefinition]
