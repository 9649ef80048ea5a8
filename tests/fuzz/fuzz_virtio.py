"""Coverage-guided fuzzing of virtqueues and the virtio block device: any bytes as what a driver out
of its mind leaves in its memory.

    make fuzz                                  a minute, with a corpus of runs that get somewhere
    .venv/bin/python tests/fuzz/fuzz_virtio.py --seconds 600 --keep DIR
    .venv/bin/python tests/fuzz/fuzz_virtio.py --again FILE    run what was found once more

Needs atheris (`pip install --group fuzz`), and says so where it is absent. What must hold of any
run is said in hostile_virtqueue.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz import runner  # noqa: E402 - found by the path above


def make() -> Callable[[bytes], None]:
    """Imports the device only here, so that it is looked into."""
    sys.modules.pop("tests.fuzz.hostile_virtqueue", None)
    from tests.fuzz.hostile_virtqueue import HostileDriver

    return HostileDriver()


def seeds() -> list[bytes]:
    """Of the driver."""
    from tests.fuzz.hostile_virtqueue import seeds as runs

    return runs()


TARGET = runner.Target(
    script=Path(__file__),
    purpose=__doc__,
    make=make,
    seeds=seeds,
    instrumented=(
        "vmmd.hw.virtio",
        "vmmd.hw.virtio_blk",
    ),
)

if __name__ == "__main__":
    sys.exit(runner.main(TARGET))
