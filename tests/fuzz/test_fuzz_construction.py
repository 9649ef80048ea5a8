"""The fuzzer's own judge over its seeds and simple damages to them: it runs without atheris too."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.fuzz_construction import MESSAGE_MARK, Judge, seeds

HARNESS = Path(__file__).parent / "fuzz_construction.py"


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    return list(dict.fromkeys(seeds()))


def test_every_seed_is_judged(corpus: list[bytes]) -> None:
    judge = Judge()
    for seed in corpus:
        judge(seed)
    messages = [seed for seed in corpus if seed.startswith(MESSAGE_MARK)]
    assert len(messages) > 100
    assert len(corpus) - len(messages) > 200


@pytest.mark.parametrize("number", range(4))
def test_damaged_seeds_are_judged(corpus: list[bytes], number: int) -> None:
    judge = Judge()
    chance = random.Random(number)
    for seed in corpus:
        data = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(1, len(data))
            if chance.random() < 0.5:
                data[at] = chance.randrange(256)
            else:
                del data[at : at + chance.randint(1, 8)]
            if len(data) < 2:
                break
        judge(bytes(data))


def test_an_input_that_was_found_can_be_run_again(tmp_path: Path) -> None:
    found = tmp_path / "crash-1"
    found.write_bytes(b'{"type": "url"}')
    ran = subprocess.run(
        [sys.executable, str(HARNESS), "--again", str(found)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout == "nothing is wrong with it\n"


def test_without_atheris_it_says_so_and_is_no_failure() -> None:
    if importlib.util.find_spec("atheris") is not None:
        pytest.skip("atheris is installed here")
    ran = subprocess.run(
        [sys.executable, str(HARNESS)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "skipped: atheris is not installed" in ran.stdout
