from collections.abc import Callable, Iterable
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# Nonce, data, what is authenticated with it, where to.
_Into: TypeAlias = Callable[[Buffer, Buffer, Buffer, Buffer], int]

def seal(
    encrypt: _Into,
    data: Buffer,
    size: int,
    nonces: Buffer,
    spans: Iterable[tuple[int, int]],
) -> tuple[bytearray, bytes]: ...
def unseal(
    decrypt: _Into,
    data: Buffer,
    contexts: object,
    size: int,
    spans: Iterable[tuple[int, int]],
) -> bytes | None: ...
