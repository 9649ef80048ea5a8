from collections.abc import Callable, Iterable
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

def seal(
    encrypt: Callable[[Buffer, Buffer, Buffer, Buffer], int],
    data: Buffer,
    size: int,
    nonces: Buffer,
    spans: Iterable[tuple[int, int]],
) -> tuple[bytearray, bytes]: ...
def unseal(
    decrypt: Callable[[Buffer, Buffer, Buffer, Buffer], int],
    data: Buffer,
    contexts: object,
    size: int,
    spans: Iterable[tuple[int, int]],
) -> bytes | None: ...
