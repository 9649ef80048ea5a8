"""What a replacement waits for, as one of a few words: texts name addresses and have no end.

The words are for metrics; people read the text itself. Known by the phrases with which the control
plane and the machine begin or end such a text.
"""

from __future__ import annotations

VMMD_AWAY = "vmmd_away"
NO_MACHINE = "no_machine"
VOLUME_NOT_ACTIVE = "volume_not_active"
MEMBER_NOT_READY = "member_not_ready"
OTHER = "other"
REASONS = (VMMD_AWAY, NO_MACHINE, VOLUME_NOT_ACTIVE, MEMBER_NOT_READY, OTHER)

# The first that is found decides.
_PHRASES = (
    ("waiting until the machine is made", NO_MACHINE),
    ("the volume is ", VOLUME_NOT_ACTIVE),
    ("slot ", MEMBER_NOT_READY),
    ("vmmd", VMMD_AWAY),
)


def reason_of(text: str) -> str:
    """The word for a text of `blocked_on`."""
    return next((reason for phrase, reason in _PHRASES if phrase in text), OTHER)
