"""The tree of a construction request as backends: built from the leaves up, with every part by its
path.

    region   the upstairs of a region set
    file     a local file; below a read-only parent it is opened for reading only
    url      something served over HTTP
    volume   its sub-volumes one after another, over its read-only parent if it has one

A child's block size must be its volume's. Files are opened and URLs asked for their size while the
tree is built, so that the size of the whole is known; downstairs are not asked. Paths are those of
the request: `sub_volumes[0].read_only_parent`. Reference: vcr-and-upstairs.md §2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stairlib.model.construction import (
    PARENT,
    Construction,
    FileSpec,
    RegionSpec,
    UrlSpec,
    VolumeSpec,
    children,
    join_path,
)
from stairlib.model.errors import FieldViolation, InvalidRequestError, StairwellError
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import Backend
from vmmd.block.concatenation import Concatenation
from vmmd.block.file import FileBackend
from vmmd.block.overlay import Overlay, ReadOnlyView
from vmmd.upstairs.shell.runner import RegionUpstairs

if TYPE_CHECKING:
    from vmmd.block.url import UrlBackend


@dataclass(slots=True)
class Tree:
    """`root` serves the whole; the parts are in the order of the request, parents last."""

    regions: dict[str, RegionUpstairs] = field(default_factory=dict)
    sources: dict[str, FileBackend | UrlBackend] = field(default_factory=dict)
    overlays: dict[str, Overlay] = field(default_factory=dict)
    _root: Backend | None = None

    @property
    def root(self) -> Backend:
        """What devices use."""
        assert self._root is not None
        return self._root

    def below(self, path: str) -> Tree:
        """The parts at and below `path`, without a root."""

        def inside(at: str) -> bool:
            return at == path or at.startswith(f"{path}.")

        return Tree(
            {at: part for at, part in self.regions.items() if inside(at)},
            {at: part for at, part in self.sources.items() if inside(at)},
            {at: part for at, part in self.overlays.items() if inside(at)},
        )

    def remove(self, parts: Tree) -> None:
        """Forgets parts that were let go."""
        for path in parts.regions:
            del self.regions[path]
        for path in parts.sources:
            del self.sources[path]
        for path in parts.overlays:
            del self.overlays[path]

    async def close(self) -> None:
        """Lets everything go, flushed or not; all are tried before the first error is raised."""
        closings = [region.close() for region in self.regions.values()]
        closings += [_close(source) for source in self.sources.values()]
        results = await asyncio.gather(*closings, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def build(
    construction: Construction, *, tracing: Tracing, activate_with_two_after: float = 0.0
) -> Tree:
    """The tree, not yet active; `activate_with_two_after` as UpstairsConfig.

    InvalidRequestError for what cannot be a volume, NotFoundError and UnavailableError for a source
    that is not there; nothing is left open then."""
    tree = Tree()
    try:
        builder = _Builder(tree, tracing, activate_with_two_after)
        tree._root = await builder.node(construction, "", below_parent=False)  # noqa: SLF001 - its maker
    except BaseException:
        with contextlib.suppress(StairwellError):
            await tree.close()
        raise
    return tree


class _Builder:
    def __init__(self, tree: Tree, tracing: Tracing, activate_with_two_after: float) -> None:
        self._tree = tree
        self._two_after = activate_with_two_after
        self._tracing = tracing

    async def node(self, node: Construction, path: str, *, below_parent: bool) -> Backend:
        match node:
            case RegionSpec():
                with _named(path):
                    region = RegionUpstairs(
                        node, tracing=self._tracing, activate_with_two_after=self._two_after
                    )
                self._tree.regions[path] = region
                return region
            case FileSpec(path=file, block_size=block_size):
                with _named(path):
                    source = _opened_file(file, block_size, read_only=below_parent)
                self._tree.sources[path] = source
                return source
            case UrlSpec(url=url, block_size=block_size):
                # Few machines have one, and its client takes 90 ms and 9 MB.
                from vmmd.block.url import UrlBackend

                with _named(path):
                    fetched = await UrlBackend.open(url, block_size)
                self._tree.sources[path] = fetched
                return fetched
            case VolumeSpec():
                return await self._volume(node, path, below_parent=below_parent)

    async def _volume(self, volume: VolumeSpec, path: str, *, below_parent: bool) -> Backend:
        for at, child in children(volume, path):
            if child.block_size != volume.block_size:
                raise _refused(
                    join_path(at, "block_size"),
                    f"is {child.block_size}, must be {volume.block_size} as in the volume it is in",
                    "BLOCK_SIZE_MISMATCH",
                )
        parts = [
            await self.node(
                child, join_path(path, f"sub_volumes[{index}]"), below_parent=below_parent
            )
            for index, child in enumerate(volume.sub_volumes)
        ]
        front = parts[0] if len(parts) == 1 else Concatenation(parts) if parts else None
        if volume.read_only_parent is None:
            if front is None:
                raise _refused(
                    join_path(path, "sub_volumes"),
                    "is empty, must hold at least one region or volume",
                    "VOLUME_EMPTY",
                )
            return front
        at = join_path(path, PARENT)
        parent = await self.node(volume.read_only_parent, at, below_parent=True)
        if front is None:
            return ReadOnlyView(parent)
        overlay = self._tree.overlays[path] = Overlay(front, parent)
        return overlay


def _opened_file(path: str, block_size: int, *, read_only: bool) -> FileBackend:
    backend = FileBackend(path, block_size=block_size, read_only=read_only, lock=True)
    if backend.size % block_size:
        backend.close()
        raise InvalidRequestError(
            f"{path} has {backend.size} bytes, which is not a whole number of blocks of "
            f"{block_size}: pad it, or name another block_size",
            reason="SOURCE_SIZE_INVALID",
            path=path,
        )
    return backend


async def _close(source: FileBackend | UrlBackend) -> None:
    if isinstance(source, FileBackend):
        # Waits for its threads.
        await asyncio.to_thread(source.close)
    else:
        await source.close()


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Says which part of the request an error is about."""
    try:
        yield
    except StairwellError as error:
        if path and not error.message.startswith(f"{path}: "):
            error.message = f"{path}: {error.message}"
            error.args = (error.message,)
            if isinstance(error, InvalidRequestError):
                error.violations = tuple(
                    replace(each, field=join_path(path, each.field)) for each in error.violations
                )
        raise


def _refused(field_path: str, text: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field_path} {text}", (FieldViolation(field_path, text, reason),), reason=reason
    )
