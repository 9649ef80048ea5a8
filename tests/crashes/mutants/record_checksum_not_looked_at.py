"""Neither the table of a record nor its data is compared with its checksum."""

from __future__ import annotations

from downstaird.core import log, log_record


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
    patch.setattr(log, "xxhash", Xxhash)
