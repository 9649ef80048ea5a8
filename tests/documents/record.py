"""Runs the documents and writes down anew what they no longer show rightly: `make record-docs`.

Output that still has its shape is left as it is, with what was left out of it by hand.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.documents.console_blocks import steps
from tests.documents.stage import OPERATIONS, TOUR, TUTORIAL, stage


async def recorded(text: str, name: str) -> str:
    """A document's text, played once, with what it prints now."""
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
                print(f"{name}:{step.line}: written anew: {step.command.splitlines()[0]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for each in sys.argv[1:] or (TOUR, OPERATIONS, TUTORIAL):
        document = Path(each)
        document.write_text(asyncio.run(recorded(document.read_text(), document.name)))
