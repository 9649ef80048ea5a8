"""Any tree of concatenations and overlays against an oracle that looks into the stores itself, and
any scrub of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vmmd.block.stores import Store, read_owned, submit, write
from vmmd.block.backend import Backend, BlockOp, BlockStatus, Request
from vmmd.block.concatenation import Concatenation
from vmmd.block.overlay import Overlay
from vmmd.block.scrub import Scrub

Blocks = list[int | None]


@dataclass
class Node:
    """A backend, and what it is made of: a store, or sub-nodes with perhaps a parent."""

    backend: Backend
    store: Store | None = None
    subs: list[Node] = field(default_factory=list)
    parent: Node | None = None

    def blocks(self) -> Blocks:
        """Per block its value, None where nobody ever wrote."""
        if self.store is not None:
            pairs = zip(self.store.values(), self.store.owned, strict=True)
            return [value if owned else None for value, owned in pairs]
        own = self.front_blocks()
        below = self.parent.blocks() if self.parent is not None else []
        below += [None] * (len(own) - len(below))
        return [under if mine is None else mine for mine, under in zip(own, below, strict=False)]

    def front_blocks(self) -> Blocks:
        """The same without the parent."""
        return [block for sub in self.subs for block in sub.blocks()]

    def overlays(self) -> list[Node]:
        """Those with a parent, below the front, innermost first: what may be scrubbed."""
        found = [each for sub in self.subs for each in sub.overlays()]
        return [*found, self] if self.parent is not None else found

    def show(self) -> None:
        """Asserts that the backend shows the oracle's blocks and owns those that exist."""
        expected = self.blocks()
        values, owned = read_owned(self.backend, 0, len(expected))
        assert values == [value or 0 for value in expected]
        assert owned == [int(value is not None) for value in expected]


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    values = draw(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=6))
    store = Store(len(values))
    for at, value in enumerate(values):
        if value is not None:
            store.put(at, value)
    return Node(store, store)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> Node:
    """A tree of at most `depth` more levels."""
    if depth == 0 or draw(st.booleans()):
        return draw(leaves())
    subs = draw(st.lists(trees(depth - 1), min_size=1, max_size=3))
    front = subs[0].backend if len(subs) == 1 else Concatenation([s.backend for s in subs])
    if not draw(st.booleans()):
        return Node(front, subs=subs)
    parent = draw(trees(depth - 1))
    return Node(Overlay(front, parent.backend), subs=subs, parent=parent)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from([BlockOp.WRITE, BlockOp.READ]), st.integers(0, 20),
              st.lists(st.integers(0, 3), max_size=8)),
    max_size=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(trees(), OPERATIONS)
def test_a_tree_shows_the_topmost_block(tree: Node, operations: list[Any]) -> None:
    tree.show()
    for op, offset, values in operations:
        before = tree.blocks()
        inside = offset + len(values) <= len(before)
        if op is BlockOp.READ:
            done = submit(tree.backend, Request(op, "r", offset, len(values)))["r"]
            status, shown = done.status, before[offset : offset + len(values)]
            if inside:
                assert list((done.data or b"")[::512]) == [value or 0 for value in shown]
        else:
            status = write(tree.backend, offset, *values)
            if inside:
                before[offset : offset + len(values)] = values
        assert status is (BlockStatus.OK if inside else BlockStatus.OUT_OF_RANGE)
        assert tree.blocks() == before
        tree.show()


async def scrubbed(overlay: Overlay, *, skip_zeros: bool) -> None:
    """A scrub of it to its end."""
    scrub = Scrub(overlay, "", bytes_per_second_max=0, skip_zeros=skip_zeros, changed=lambda: None)
    assert await scrub.run()
    await overlay.drop_parent()


@settings(max_examples=150, deadline=None)
@given(trees(), st.data())
def test_a_scrub_changes_nothing_that_is_seen(tree: Node, data: st.DataObject) -> None:
    """Scrub any overlay of the tree, then any other: before and after it shows the same."""
    before = tree.blocks()
    waiting = tree.overlays()
    while waiting:
        node = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        outermost = node is tree
        assert isinstance(node.backend, Overlay)
        asyncio.run(scrubbed(node.backend, skip_zeros=outermost))
        node.parent = None
        after = tree.blocks()
        if outermost:  # zeros of the parent may have stayed unwritten
            assert [value or 0 for value in after] == [value or 0 for value in before]
            before = after
        else:
            assert after == before
        tree.show()
