"""The console's keys where there is no terminal."""

from __future__ import annotations

import sys

import pytest

from controlplane.cli.commands.serial import _Keys


async def test_a_program_without_an_input_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    keys = _Keys()
    assert not keys.is_terminal
    with keys.raw():
        assert [piece async for piece in keys] == []
