"""The version of fastkube and of the Kubernetes API it speaks. Imports nothing, so that packaging can read it."""

__version__ = "0.1.0"

KUBERNETES_MAJOR, KUBERNETES_MINOR = "1", "36"
KUBERNETES_VERSION = f"v{KUBERNETES_MAJOR}.{KUBERNETES_MINOR}.0+fastkube{__version__}"
