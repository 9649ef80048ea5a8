"""What a guest does by itself, and what may be done to it."""

from __future__ import annotations

import enum


class GuestEvent(enum.Enum):
    """News of a guest that nobody asked for."""

    # It powered itself off.
    POWERED_OFF = "powered off"
    # It reset itself; it is already starting anew.
    RESET = "reset"
    # Its kernel says that it has panicked.
    PANICKED = "panicked"
    # What runs its processors is gone.
    DIED = "died"


class GuestSignal(enum.Enum):
    """What a person does at a machine."""

    POWER_BUTTON = "power button"
    NMI = "nmi"
