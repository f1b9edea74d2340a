"""Structured logs: one JSON or key=value line each, to stderr, through structlog.

`log = logs.get("scheduler")`, then `log.info("bound pod", pod="default/web", node="n1")`. Messages are lower-case phrases;
what varies goes into fields. Secrets (tokens, keys, Secret data) never go into a field.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _named(_logger: Any, _method: str, event: Any) -> Any:
    if "logger_" in event:
        event["logger"] = event.pop("logger_")
    return event


def configure(level: str = "info", form: str = "json", component: str | None = None) -> None:
    """Set the process's log up. `form` is `json` or `text` (key=value); `component` goes into each line."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["ts", "level", "component", "logger", "msg"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", key="ts"),
            structlog.processors.EventRenamer("msg"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    if component:
        structlog.contextvars.bind_contextvars(component=component)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format='{"level":"%(levelname)s","logger":"%(name)s","msg":"%(message)s"}')


def get(name: str) -> Any:
    """A logger whose lines carry `logger=name`."""
    return structlog.get_logger(logger_=name)  # `logger` itself is a parameter of structlog's
