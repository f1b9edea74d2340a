from collections.abc import Callable
from typing import Any

class Code:
    ANY: int
    STRING: int
    INT32: int
    INT64: int
    BOOL: int
    DOUBLE: int
    BYTES: int
    STRUCT: int
    ARRAY: int
    MAP: int
    QUANTITY: int
    TIME: int
    MICROTIME: int
    INTSTR: int
    SCHEMA_OR: int

class DecodeError(ValueError): ...

class Node:
    code: int
    type: str
    go: str
    items: Node | None
    additional: Node | None
    format: str
    list_type: str
    map_type: str
    map_keys: tuple[str, ...]
    merge_key: str
    patch_strategy: str
    embedded: str
    definition: str
    pointer: bool
    omit_empty: bool
    explicit_null: bool
    nullable: bool
    int_or_string: bool
    preserve_unknown: bool
    embedded_resource: bool
    raw: Any
    extra: Any
    always: tuple[tuple[str, Node], ...]
    _properties: dict[str, Node] | None
    _loader: Callable[[], tuple[dict[str, Node], tuple[tuple[str, Node], ...]]] | None
    def __init__(self, code: int, type: str = "", go: str = "") -> None: ...
    @property
    def properties(self) -> dict[str, Node] | None: ...

class Walker:
    def __init__(
        self,
        quantity: Callable[[str], str],
        quantities: dict[str, str],
        time: Callable[[str], str | None],
        microtime: Callable[[str], str | None],
        bytes_: Callable[[str], str],
    ) -> None: ...
    def walk(self, node: Node, obj: dict[str, Any], strict: bool = True) -> list[str]: ...
    def zero(self, node: Node) -> Any: ...

def prune(node: Node, value: Any) -> list[str]: ...
def members(text: bytes) -> int: ...
def held(value: Any) -> int: ...
