"""A switch of a command."""

from __future__ import annotations

import enum


class Switch(enum.StrEnum):
    """What a switch is set to."""

    ON = "on"
    OFF = "off"
