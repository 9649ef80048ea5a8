"""A place on the PCI topology, written "bus.device.function" in decimal."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stairlib.model.errors import InvalidRequestError

_FORM = re.compile(r"(\d{1,3})\.(\d{1,2})\.(\d)")


@dataclass(frozen=True, slots=True, order=True)
class PciPath:
    """bus 0-255, device 0-31, function 0-7."""

    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciPath:
        """InvalidRequestError says what the form is."""
        match = _FORM.fullmatch(text)
        if match:
            bus, device, function = map(int, match.groups())
            if bus <= 255 and device <= 31 and function <= 7:
                return cls(bus, device, function)
        raise InvalidRequestError(
            f'"{text}" is not bus.device.function (0-255.0-31.0-7), as in 0.16.0',
            reason="BAD_PCI_PATH",
        )

    def __str__(self) -> str:
        return f"{self.bus}.{self.device}.{self.function}"
