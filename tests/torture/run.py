"""One scenario after another, with what came of each."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stairlib.model.cipher import CIPHERS
from tests.torture.scenarios import SCENARIOS
from tests.torture.tormentor import Tormentor


@dataclass
class Result:
    """What a scenario did, and how it failed; `folder` is kept then."""

    scenario: str
    seed: int
    loops: int = 0
    seconds: float = 0.0
    longest_wait: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    error: str = ""
    folder: str = ""

    @property
    def command(self) -> str:
        """Shows it again; what the machine's mood decides may differ."""
        return f"python -m tests.torture --scenario {self.scenario} --seed {self.seed} --loops 1"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "counts": dict(self.counts), "command": self.command}


def loop_seed(seed: int, scenario: str, loop: int) -> int:
    """Of one loop."""
    return random.Random(f"{seed} {scenario} {loop}").getrandbits(32) if loop else seed


async def torment(scenario: str, seed: int, *, seconds: float, loops: int, scale: float) -> Result:
    """Loops of a scenario on a volume that is new for each, for as long or as often as is asked."""
    result = Result(scenario, seed)
    began = time.monotonic()
    while not result.error:
        if result.loops and (
            (loops and result.loops >= loops) or time.monotonic() - began >= seconds
        ):
            break
        result.seed = loop_seed(seed, scenario, result.loops)
        await _loop(result, scale)
        result.loops += 1
    result.seconds = time.monotonic() - began
    return result


async def _loop(result: Result, scale: float) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"stairwell-torture-{result.scenario}-"))
    # Half of the volumes are encrypted; the larger ones of the long form have more extents.
    cipher = ["", *CIPHERS][result.seed % 4] if result.seed % 4 <= len(CIPHERS) else ""
    # What the upstairs logs is beside what the daemons do.
    log = logging.FileHandler(folder / "upstairs.log")
    logging.getLogger().addHandler(log)
    tormentor = Tormentor(folder, result.seed, extents=16 if scale <= 1 else 64, cipher=cipher)
    try:
        await tormentor.members.start_all()
        await SCENARIOS[result.scenario](tormentor, scale)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        result.error = f"{type(error).__name__}: {error}"
        result.folder = str(folder)
    finally:
        await tormentor.close()
        logging.getLogger().removeHandler(log)
        log.close()
        result.counts += tormentor.counts
        result.counts["kills"] += tormentor.members.killed
        result.longest_wait = max(result.longest_wait, tormentor.longest_wait)
        if not result.error:
            shutil.rmtree(folder, ignore_errors=True)


def run_all(
    names: Sequence[str],
    seed: int,
    *,
    seconds: float,
    loops: int,
    scale: float,
    tell: Callable[[Result], None],
) -> list[Result]:
    """The scenarios in turn, `seconds` shared equally; `tell` hears of each."""
    results = []
    for name in names:
        share = seconds / len(names)
        result = asyncio.run(torment(name, seed, seconds=share, loops=loops, scale=scale))
        tell(result)
        results.append(result)
    return results
