"""A downstairs whose write failed lets the next flush succeed."""

from __future__ import annotations

from downstaird.core.session import Session


def plant(patch) -> None:
    flush = Session._flush

    def forgiving(self: Session, *arguments) -> None:
        self._lost = ""
        flush(self, *arguments)

    patch.setattr(Session, "_flush", forgiving)
