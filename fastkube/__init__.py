"""fastkube: a complete Kubernetes in Python with Cython kernels. `docs/architecture.md` shows the rooms of the house."""

from fastkube._version import KUBERNETES_VERSION, __version__

__all__ = ["KUBERNETES_VERSION", "__version__"]
