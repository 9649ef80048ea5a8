"""A second replacement begins while one is running."""

from __future__ import annotations

from controlplane.core import replace_decision


def plant(patch) -> None:
    patch.setattr(replace_decision, "_refuse_while_running", lambda *_arguments: None)
