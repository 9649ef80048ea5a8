"""What a request may name on and from a host: files below given directories, and members over plain
text only where nobody listens in.

Requests come over the network, from whoever may command; the rules are the host's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stairlib.model.construction import Construction, FileSpec, RegionSpec, join_path, walk
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.rpc.gate import is_private


@dataclass(frozen=True, slots=True)
class Confinement:
    """`directories` None: any file that the process can open; empty: none. `plain_text`: members on
    other hosts may be spoken to without TLS."""

    directories: tuple[str, ...] | None = None
    plain_text: bool = False

    def check(self, construction: Construction) -> None:
        """InvalidRequestError with every node that breaks a rule (FILE_OUTSIDE, PLAIN_TEXT)."""
        found = [
            violation
            for path, node in walk(construction)
            for violation in (
                self._file(node, path)
                if isinstance(node, FileSpec)
                else self._members(node, path)
                if isinstance(node, RegionSpec)
                else ()
            )
        ]
        if found:
            raise InvalidRequestError(
                "; ".join(f"{each.field}: {each.description}" for each in found),
                tuple(found),
                reason=found[0].reason,
            )

    def _file(self, node: FileSpec, path: str) -> Sequence[FieldViolation]:
        if self.directories is None or is_inside(node.path, self.directories):
            return ()
        where = (
            f"must be in {' or '.join(self.directories)}, to which this host's file_directories "
            "confine files"
            if self.directories
            else "must not be used: this host's configuration names no directory for them "
            "(file_directories)"
        )
        return [FieldViolation(join_path(path, "path"), f"{node.path} {where}", "FILE_OUTSIDE")]

    def _members(self, node: RegionSpec, path: str) -> Sequence[FieldViolation]:
        if self.plain_text or node.options.cert_pem is not None:
            return ()
        return [
            FieldViolation(
                join_path(path, f"opts.target[{slot}]"),
                f"{target} is on another host, and the region names no certificates: name "
                "cert_pem, key_pem and root_cert_pem, or start vmmd with --insecure where the "
                "network is private",
                "PLAIN_TEXT",
            )
            for slot, target in enumerate(node.options.targets)
            if not is_private(target)
        ]


def is_inside(path: str, directories: Sequence[str]) -> bool:
    """Whether what a path leads to, links followed, lies below one of the directories."""
    try:
        found = Path(os.path.realpath(path))
        return any(found.is_relative_to(os.path.realpath(each)) for each in directories)
    except (OSError, ValueError):
        return False
