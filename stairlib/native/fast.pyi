from typing import TypeAlias, TypeVar

Buffer: TypeAlias = bytes | bytearray | memoryview

_Kind = TypeVar("_Kind", bound=Spans)

def as_told(data: Buffer, contexts: object, size: int, plain: bool) -> bool: ...
def plain_contexts(data: Buffer, size: int) -> bytearray: ...
def new_bytes(size: int) -> tuple[bytes, memoryview]: ...
def summary(
    frame: Buffer,
) -> tuple[int, int, int, int, int, int, int, int, int, bool] | None: ...
def request_head(
    first: int, ops: list[tuple[int, int, int]], contexts: object, payload_bytes: int
) -> bytes: ...
def serve_reads(
    frame: Buffer, overlay: object, chunks: object, chunk_blocks: int, size: int, block_count: int
) -> tuple[bytes, int] | None: ...
def serve_writes(
    frame: Buffer,
    overlay: object,
    touched: set[int],
    chunk_blocks: int,
    size: int,
    block_count: int,
    extent_blocks: int,
    large_blocks: int,
    plain: bool,
) -> tuple[bytes, int] | None: ...

class Spans:
    requests: int
    blocks: int
    block_size: int
    data_bytes: int
    end: int
    reads: bool
    payload: bytes | None
    tokens: list[object] | None
    def span(self, index: int) -> tuple[int, int, int, int]: ...
    def ops(self) -> list[tuple[int, int, int]]: ...
    def tally(self, sizes: list[int]) -> None: ...
    def request(self, first: int) -> bytes: ...
    def replies(self, data: Buffer | None, structured: bool) -> bytes: ...

def requests(
    kind: type[_Kind],
    staging: Buffer,
    start: int,
    end: int,
    size: int,
    block_count: int,
    room: int,
    bytes_room: int,
    bytes_max: int,
    reads_alone: bool,
) -> tuple[int, _Kind | None, _Kind | None]: ...
