#!/usr/bin/env python
"""Man pages and shell completion of the programs, which the wheel installs.

scripts/man_pages.py           writes share/ anew
scripts/man_pages.py --check   status 1 when a page is not as its program is now
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.program_model import Command, Parameter, programs

ROOT = Path(__file__).resolve().parents[1]
SHARE = ROOT / "share"
COMPLETIONS = {
    "bash": "bash-completion/completions/stairwell",
    "zsh": "zsh/site-functions/_stairwell",
    "fish": "fish/vendor_completions.d/stairwell.fish",
}


def escaped(text: str) -> str:
    """Text as roff takes it: no escapes, and no requests at the start of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))


def paragraphs(text: str) -> list[str]:
    """A description's paragraphs; examples keep their lines."""
    found: list[str] = []
    for each in text.strip().split("\n\n"):
        if any(line.startswith("  ") for line in each.splitlines()):
            found += [".PP", ".nf", escaped(each), ".fi"]
        else:
            found += [".PP", escaped(" ".join(each.split()))]
    return found


def parameter(one: Parameter) -> list[str]:
    """A tagged paragraph."""
    tag = ", ".join(f"\\fB{escaped(name)}\\fR" for name in one.names)
    if one.value:
        tag = f"{tag} \\fI{escaped(one.value)}\\fR".strip()
    return [".TP", tag, escaped(one.text) or "\\&"]


def page(program: Command) -> str:
    """The page of a program, with all its commands."""
    name = program.path
    lines = [
        '.\\" Made by scripts/man_pages.py from the program itself.',
        f'.TH {name.upper()} 1 "" "Stairwell" "User Commands"',
        ".SH NAME",
        f"{name} \\- {escaped(program.summary.rstrip('.'))}",
        ".SH SYNOPSIS",
        f"\\fB{name}\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        *paragraphs(program.text),
    ]
    if program.parameters:
        lines.append(".SH OPTIONS")
        for each in program.parameters:
            lines += parameter(each)
    lines.append(".SH COMMANDS")
    for command in program.all()[1:]:
        words = " ".join(
            f"\\fI{escaped(each.value)}\\fR" for each in command.parameters if not each.names
        )
        lines += [f".SS {escaped(command.path)} {words}".rstrip(), *paragraphs(command.text)]
        for each in command.parameters:
            if each.names or each.text:
                lines += parameter(each)
    lines += [
        ".SH EXIT STATUS",
        "0 when what was asked for is so, 1 when not, 2 for a command line",
    ]
    lines += ["that makes no sense.", ""]
    return "\n".join(lines)


def completion(shell: str) -> str:
    """What `stairwell --show-completion` prints for a shell."""
    env = {**os.environ, "_STAIRWELL_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-c", "from controlplane.cli.main import main; main([])"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    return told.stdout.strip().replace(sys.executable, "stairwell") + "\n"


def pages() -> dict[Path, str]:
    """The man pages, by path."""
    return {SHARE / "man" / "man1" / f"{each.path}.1": page(each) for each in programs()}


def completions() -> dict[Path, str]:
    """The shells' files, by path. Their text is typer's: a newer one may say it differently, and
    what is here works all the same, so that they are not checked."""
    return {SHARE / path: completion(shell) for shell, path in COMPLETIONS.items()}


def main() -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if stale")
    check = parser.parse_args().check
    stale = []
    for path, text in (pages() if check else pages() | completions()).items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    word = "is stale: run `make man`" if check else "written"
    for path in stale:
        print(f"{path.relative_to(ROOT)} {word}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
