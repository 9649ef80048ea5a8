"""The state diagrams of the documents, as the site draws them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from scripts.state_drawing import drawn

DOCS = Path(__file__).resolve().parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
DIAGRAMS = [
    (document.stem, text)
    for document in sorted(DOCS.glob("*.md"))
    for text in re.findall(
        r"^```mermaid\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE
    )
]


@pytest.mark.parametrize("diagram", [text for _name, text in DIAGRAMS])
def test_every_state_and_every_move_is_drawn(diagram: str) -> None:
    root = ET.fromstring(drawn(diagram))
    moves = re.findall(r"^ *(\S+) --> (\S+?)(?:: (.+))?$", diagram, re.MULTILINE)
    between = [move for move in moves if "[*]" not in move]
    states = {name for move in between for name in move[:2]}
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert states <= set(texts)
    for *_states, name in between:
        assert any(name in text for text in texts)
    boxes = [box for box in root.iter(f"{SVG}rect") if box.get("class", "").startswith("box")]
    assert len(boxes) == len(states)
    # Moves of several names to the next state are one arrow.
    ways = [way for way in root.iter(f"{SVG}path") if way.get("class") == "way"]
    assert len({move[:2] for move in between}) <= len(ways) <= len(between)
    for way in ways:
        assert way.get("marker-end")
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in boxes:
        assert 0 < float(box.get("x", 0)) < width
        assert 0 < float(box.get("y", 0)) < height


def test_there_are_diagrams() -> None:
    assert {name for name, _text in DIAGRAMS} >= {"upstairs", "workflows"}
