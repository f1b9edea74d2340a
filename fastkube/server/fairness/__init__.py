"""API priority and fairness (https://kubernetes.io/docs/concepts/cluster-administration/flow-control/): who may keep the server busy, and how much.

Every request belongs to a flow of a FlowSchema, every FlowSchema to a priority level that has seats. `classes` finds the flow schema, `seats` is the pure
core (seats, queues, shuffle sharding), `controller` follows the stored objects and stands between the pipeline and its handlers.

What takes seats: writes (from decoding until they are durable) and lists, wide ones until their body has been sent. A single GET is answered in the turn
of the loop it came in, in less time than queueing would take; watches and streams take none after they began, as upstream.
"""

from fastkube.server.fairness.controller import Fairness

__all__ = ["Fairness"]
