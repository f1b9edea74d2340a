from enum import IntEnum
from typing import Any

class Kind(IntEnum):
    STRING = 0
    BYTES = 1
    BOOL = 2
    INT32 = 3
    INT64 = 4
    DOUBLE = 5
    MESSAGE = 6
    QUANTITY = 7
    INTSTR = 8
    TIME = 9
    MICROTIME = 10
    RAW = 11
    STRINGS = 12
    SCHEMA_OR_ARRAY = 13
    SCHEMA_OR_BOOL = 14
    SCHEMA_OR_STRINGS = 15

class DecodeError(ValueError): ...
class EncodeError(ValueError): ...

class Field:
    number: int
    name: str
    kind: int
    flags: int
    message: Message | None
    def __init__(self, number: int, name: str, kind: int, flags: int) -> None: ...

class Message:
    name: str
    fields: list[Field]
    def __init__(self, name: str) -> None: ...
    def add(self, field: Field) -> None: ...

def decode(message: Message, data: bytes) -> dict[str, Any]: ...
def encode(message: Message, obj: dict[str, Any]) -> bytes: ...
def pieces(data: bytes) -> dict[int, bytes]: ...
