"""The sessions of a region: at most one where it is writable, one for each upstairs where it is
read-only.

A session is granted by a promotion, with a token good once and for a short time; it is connected by
the data connection that presents the token, and lives until that connection goes. Sessions are
known by a serial number, so the end of a connection never removes another session, whatever
identity both had."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from downstaird.core.promotion import Proposal
from stairlib.model.errors import LimitError, RefusedError

# A client connects at once; this is for a slow network, and short enough that a client which died
# between the two steps does not keep hands and a release waiting.
TOKEN_SECONDS = 10.0
# A read-only region serves the volumes cloned from it; each session costs buffers of a few MiB.
READERS_MAX = 64


@dataclass(slots=True)
class Grant:
    """One session. Times are in seconds of the caller's monotonic clock."""

    serial: int
    upstairs_id: uuid.UUID
    session_id: uuid.UUID
    generation: int
    read_only: bool
    token: bytes
    expires: float
    connected: bool = False
    lossy: bool = False

    @property
    def describe(self) -> str:
        """For messages to other sessions."""
        return (
            f"upstairs {self.upstairs_id}, session {self.session_id}, generation {self.generation}"
        )


class SessionTable:
    """Who may use the region now. Pure: tokens and times come in as arguments."""

    def __init__(self) -> None:
        self._serial = 0
        self._grants: dict[int, Grant] = {}

    @property
    def writer(self) -> Grant | None:
        """The session that owns the writable region, connected or about to be."""
        return next((grant for grant in self._grants.values() if not grant.read_only), None)

    def grants(self) -> list[Grant]:
        """Every session, connected or about to be."""
        return list(self._grants.values())

    def grant(self, proposal: Proposal, token: bytes, now: float) -> tuple[Grant, list[Grant]]:
        """Registers the session of a promotion that was accepted. Also returns the sessions it
        ends."""
        if proposal.read_only:
            ended = [
                grant
                for grant in self._grants.values()
                if grant.upstairs_id == proposal.upstairs_id
            ]
            if len(self._grants) - len(ended) >= READERS_MAX:
                raise LimitError(
                    f"the region already serves {READERS_MAX} read-only sessions; end one of them",
                    limit=str(READERS_MAX),
                )
        else:
            ended = list(self._grants.values())
        for grant in ended:
            del self._grants[grant.serial]
        self._serial += 1
        new = Grant(
            self._serial,
            proposal.upstairs_id,
            proposal.session_id,
            proposal.generation,
            proposal.read_only,
            token,
            now + TOKEN_SECONDS,
            lossy=proposal.lossy,
        )
        self._grants[new.serial] = new
        return new, ended

    def connect(self, token: bytes, now: float) -> Grant:
        """The session the token is for. RefusedError TOKEN_UNKNOWN when it was used, expired or
        made up."""
        for grant in self._grants.values():
            if not grant.connected and grant.token == token and now < grant.expires:
                grant.connected = True
                grant.token = b""
                return grant
        raise RefusedError(
            "the token is unknown, used or expired: open a session again", reason="TOKEN_UNKNOWN"
        )

    def remove(self, serial: int) -> bool:
        """The session's data connection has gone. False when it had been ended before."""
        return self._grants.pop(serial, None) is not None

    def expire(self, now: float) -> list[Grant]:
        """Removes and returns sessions that nobody connected in time."""
        late = [
            grant for grant in self._grants.values() if not grant.connected and now >= grant.expires
        ]
        for grant in late:
            del self._grants[grant.serial]
        return late
