"""Admission: what may change a write, and what may refuse it, between decoding and storing (plugins in upstream's order).

    chain = admission.build(Config(), reader, writer, authorizer)
    await chain.admit(attributes)       # mutating, before the kind's validation; ApiError
    await chain.validate(attributes)    # validating, after it, just before the write; ApiError
    ... write; when the write fails or is a dry run, whatever reservations were taken go back:
    attributes.undo()                   # only when it failed

`Plugin` is the one interface, for built-in ones and for those of entry points (fastkube.plugins). A chain decides once per (operation, resource,
subresource) which plugins have a part in it: a write that none looks at costs a dictionary look-up.
"""

from __future__ import annotations

from fastkube.server.admission.chain import Chain, Config, build
from fastkube.server.admission.plugin import Plugin, forbidden

__all__ = ["Chain", "Config", "Plugin", "build", "forbidden"]
