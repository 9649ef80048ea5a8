"""Runs a fuzzing target with atheris: a corpus, a dictionary, a limit of time, and what was found.

python tests/fuzz/fuzz_NAME.py --seconds 600 --keep DIR
python tests/fuzz/fuzz_NAME.py --again FILE       run what was found once more
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

LONGEST_INPUT = 1 << 14


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed. `make` imports what is tested and returns what is called with each input;
    `words` are lines of libFuzzer's dictionary, `instrumented` the packages to look into."""

    script: Path
    purpose: str
    make: Callable[[], Callable[[bytes], None]]
    seeds: Callable[[], Iterable[bytes]]
    instrumented: tuple[str, ...]
    words: tuple[str, ...] = ()


def write_corpus(target: Target, directory: Path) -> None:
    """The seeds as files, and the dictionary beside them."""
    corpus = directory / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(dict.fromkeys(target.seeds())):
        (corpus / f"seed-{number}").write_bytes(seed)
    (directory / "words.dict").write_text("".join(f"{word}\n" for word in target.words))


def fuzz(target: Target, directory: Path, seconds: int) -> None:
    """Never returns: the fuzzer ends the process, with a code that is not 0 when it found one."""
    import atheris

    write_corpus(target, directory)
    tops = {name.split(".")[0] for name in target.instrumented}
    with atheris.instrument_imports(include=list(target.instrumented)):
        for name in [one for one in sys.modules if one.split(".")[0] in tops]:
            del sys.modules[name]
        tested = target.make()
    atheris.Setup(
        [
            str(target.script),
            str(directory / "corpus"),
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST_INPUT}",
            *([f"-dict={directory / 'words.dict'}"] if target.words else []),
            f"-artifact_prefix={directory}/",
            "-timeout=10",
            "-print_final_stats=1",
            "-verbosity=0",
        ],
        tested,
    )
    atheris.Fuzz()


def main(target: Target) -> int:
    """One command; leaves nothing behind but what it found."""
    parser = argparse.ArgumentParser(description=target.purpose.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--keep", type=Path, help="keep corpus and findings here")
    parser.add_argument("--again", type=Path, help="run one input that was found; no fuzzing")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again:
        target.make()(options.again.read_bytes())
        print("nothing is wrong with it")
        return 0
    if options.inside:
        fuzz(target, options.inside, options.seconds)
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed; `.venv/bin/pip install --group fuzz` installs it")
        return 0
    with contextlib.ExitStack() as stack:
        directory = options.keep
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(target.script), "--seconds", str(options.seconds)]
        ended = subprocess.run([*command, "--inside", str(directory)], check=False)
        for found in [*directory.glob("crash-*"), *directory.glob("timeout-*")]:
            kept = Path.cwd() / found.name
            kept.write_bytes(found.read_bytes())
            print(f"found: {kept}; see it again with --again {kept}")
        return ended.returncode
