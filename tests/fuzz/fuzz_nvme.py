"""Coverage-guided fuzzing of the NVMe controller: any bytes as a run of a guest out of its mind.

    make fuzz                                  a minute, with a corpus of runs that get somewhere
    .venv/bin/python tests/fuzz/fuzz_nvme.py --seconds 600 --keep DIR
    .venv/bin/python tests/fuzz/fuzz_nvme.py --again FILE    run what was found once more

Needs atheris (`pip install --group fuzz`), and says so where it is absent. What must hold of any
run is said in hostile_guest.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz import runner  # noqa: E402 - found by the path above


def make() -> Callable[[bytes], None]:
    """Imports the controller only here, so that it is looked into."""
    sys.modules.pop("tests.fuzz.hostile_guest", None)
    from tests.fuzz.hostile_guest import HostileGuest

    return HostileGuest()


def seeds() -> list[bytes]:
    """Of the guest."""
    from tests.fuzz.hostile_guest import seeds as runs

    return runs()


TARGET = runner.Target(
    script=Path(__file__),
    purpose=__doc__,
    make=make,
    seeds=seeds,
    instrumented=("vmmd.hw",),
)

if __name__ == "__main__":
    sys.exit(runner.main(TARGET))
