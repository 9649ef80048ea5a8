"""The checksum of a record is not looked at."""

from __future__ import annotations

from downstaird.core import log_record


def plant(patch) -> None:
    class Blind:
        def __init__(self, *_) -> None:
            pass

        def update(self, _data) -> None:
            pass

        def intdigest(self) -> int:
            return 7

    class Xxhash:
        xxh3_64 = Blind
        xxh3_64_intdigest = staticmethod(lambda *_, **__: 7)

    patch.setattr(log_record, "xxhash", Xxhash)
