"""CEL expressions inside built-in objects (admission policies, device selectors): whether they are CEL at all, in CEL's words.

The CEL library is loaded at the first expression: most servers never see one at their start.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from fastkube.api.errors import invalid_value
from fastkube.api.kinds.common import Errors

EXPRESSIONS_CACHED_MAX = 1024
_VARIABLES = ("object", "oldObject", "request", "params", "namespaceObject", "authorizer", "variables", "device", "self")
_RESERVED = frozenset(
    ["as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while"]
)  # fmt: skip


def identifier(name: str) -> bool:
    """Whether a name can be used in expressions."""
    return bool(re.fullmatch(r"[_a-zA-Z][_a-zA-Z0-9]*", name)) and name not in _RESERVED


@functools.cache
def _env() -> Any:
    from cel_expr_python import cel
    from cel_expr_python.ext import ext_bindings, ext_optional

    return cel.NewEnv(variables=dict.fromkeys(_VARIABLES, cel.Type.DYN), extensions=[ext_bindings.ExtBindings(), ext_optional.ExtOptional()])


@functools.lru_cache(maxsize=EXPRESSIONS_CACHED_MAX)
def problem(text: str) -> str:
    """Why `text` is no CEL; "" when it is."""
    try:
        _env().compile(text)
    except Exception as e:  # the binding raises RuntimeError and ValueError alike
        said = str(e).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
        if not text.strip():
            said = said.replace("<input>:1:1:", "<input>:1:0:", 1)  # where cel-go sees the end of nothing
        # Only what no environment could make sense of is refused: Kubernetes' own functions and types are not all known here.
        return said if "Syntax error" in said else ""
    return ""


def expression_errors(text: str, at: str, wanted: str = "bool") -> Errors:
    """The field error of an expression that does not compile. `wanted` is the type it should have (for its reader; evaluation finds out)."""
    del wanted
    said = problem(text)
    return [invalid_value(at, text, f"compilation failed: {said}")] if said else []
