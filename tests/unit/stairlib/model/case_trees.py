"""Construction requests for the case tables: named bases, and edits by path."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Table:
    """Files of `cases`, and `bases` in one of them. {"$base": name} in any value is that base."""

    def __init__(self, *paths: Path) -> None:
        self.bases: dict[str, Any] = {}
        self.cases: list[dict[str, Any]] = []
        for path in paths:
            found = json.loads(path.read_text())
            self.bases |= found.get("bases", {})
            self.cases += found["cases"]

    def built(self, value: Any) -> Any:
        """A copy of `value` with every base in its place."""
        if isinstance(value, dict):
            if "$base" in value:
                return self.built(self.bases[value["$base"]])
            return {name: self.built(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.built(item) for item in value]
        return copy.copy(value)

    def edited(self, base: str, edits: dict[str, Any], drop: tuple[str, ...] = ()) -> Any:
        """The base with values set by path and the keys at `drop` taken out."""
        tree = self.built({"$base": base})
        for path, value in edits.items():
            steps = _steps(path)
            if not steps:
                tree = self.built(value)
                continue
            at = _walked(tree, steps[:-1])
            at[steps[-1]] = self.built(value)
        for path in drop:
            steps = _steps(path)
            del _walked(tree, steps[:-1])[steps[-1]]
        return tree


def _steps(path: str) -> list[str | int]:
    return [int(index) if index else name for name, index in _STEP.findall(path)]


def _walked(tree: Any, steps: list[str | int]) -> Any:
    for step in steps:
        tree = tree[step]
    return tree
