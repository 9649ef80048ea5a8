"""Runs the tour and writes down anew what it no longer shows rightly: `make record-grpcurl`.

Output that still has its shape is left as it is, with what was left out of it by hand.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.grpcurl.console_blocks import steps
from tests.grpcurl.stage import TOUR, stage


async def record() -> None:
    """Plays the tour once and rewrites it."""
    text = TOUR.read_text()
    lines = text.splitlines()
    moved = 0
    with tempfile.TemporaryDirectory(prefix="tour-") as folder:
        async with stage(Path(folder) / "house") as running:
            for step in steps(text):
                output = await running.run(step.command)
                if not running.play.difference(step.expected, output):
                    continue
                told = running.play.told(output).rstrip().expandtabs(4).splitlines()
                first = step.end - 1 - len(step.expected) + moved
                lines[first : step.end - 1 + moved] = told
                # New names stand for themselves from here on, wherever else the tour shows them.
                running.play.difference(tuple(told), output)
                moved += len(told) - len(step.expected)
                print(f"line {step.line}: written anew: {step.command.splitlines()[0]}")
    TOUR.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(record())
