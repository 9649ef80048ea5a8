#!/usr/bin/env python
"""Builds the documentation's site: `make docs`, then build/site/index.html.

The documents are taken as they are in the repository; the references of the programs and of the
API are made from the programs and the protos. A link that leads nowhere is an error, and so is
anything else Sphinx warns of.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.api_reference import api_page, marked, prose
from scripts.program_model import Command, programs
from scripts.state_drawing import drawn

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
_DIAGRAM = re.compile(r"^```mermaid\n(stateDiagram.*?)^```\n", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\[[^\]]*\]\()([^)#\s]+)([^)]*\))")
_INDEX = """# Stairwell

Replicated block storage for virtual machines: a disk is kept three times, and a copy is replaced
under a running guest.

```{{toctree}}
:caption: Begin
README
docs/tutorial
```

```{{toctree}}
:caption: How to
docs/how-to
docs/operations
docs/replacement
docs/fleet
docs/machines
docs/agent
docs/compose
docs/database
docs/tracing
docs/metrics
docs/grpcurl
docs/console
docs/repair-limits
docs/failures
```

```{{toctree}}
:caption: Reference
docs/vcr
reference/programs
reference/api
docs/region-format
CHANGELOG
```

```{{toctree}}
:caption: How it is made
ARCHITECTURE
{rest}
```
"""
_CONF = """
project = "Stairwell"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Stairwell"
myst_heading_anchors = 4
smartquotes = False
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
exclude_patterns = []
"""


def copied(source: Path) -> None:
    """The documents, and the files they link to; links to folders lead nowhere on a site."""
    documents = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CHANGELOG")]
    documents += [each for each in (ROOT / "THREAT_MODEL.md",) if each.exists()]
    documents += sorted((ROOT / "docs").rglob("*.md"))
    for document in documents:
        target = source / document.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _LINK.sub(lambda found, at=document: linked(found, at, source), document.read_text())
        target.write_text(_DIAGRAM.sub(lambda found, at=target: pictured(found, at), text))


def pictured(found: re.Match[str], document: Path) -> str:
    """A state diagram as a picture beside the document: the site runs no script that draws it."""
    number = len(list(document.parent.glob(f"{document.stem}-states-*.svg"))) + 1
    picture = document.parent / f"{document.stem}-states-{number}.svg"
    picture.write_text(drawn(found[1]))
    return f"![The states and the moves between them, as in the table]({picture.name})\n"


def linked(found: re.Match[str], document: Path, source: Path) -> str:
    """A link as the site has it; what it leads to is copied where it is a file."""
    target = found[2]
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    path = (document.parent / target).resolve()
    if (path / "README.md").exists():
        return f"{found[1]}{target}/README.md{found[3]}"
    if path.is_dir():
        return found[1][1:-2]
    if path.exists() and path.suffix != ".md":
        place = source / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return found[0]


def programs_page() -> str:
    """The reference of all programs' command lines."""
    lines = [
        "# Programs",
        "",
        "As their `--help` says. The wheel installs the same as man pages.",
        "",
    ]
    for program in programs():
        for command in program.all():
            depth = "##" if command is program else "###"
            lines += [f"{depth} {command.path}", "", *prose(command.text), *table(command), ""]
    return "\n".join(lines) + "\n"


def table(command: Command) -> list[str]:
    """Its options and arguments."""
    if not command.parameters:
        return []
    lines = ["| | |", "|---|---|"]
    for one in command.parameters:
        shown = ", ".join(f"`{name}`" for name in one.names)
        value = f"`{one.value}`".replace("|", "\\|") if one.value else ""
        lines.append(f"| {shown} {value} | {marked(one.text)} |")
    return lines


def main() -> int:
    """The program; its exit status."""
    source, site = BUILD / "site-source", BUILD / "site"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    copied(source)
    (source / "reference").mkdir()
    (source / "reference" / "programs.md").write_text(programs_page())
    (source / "reference" / "api.md").write_text(api_page())
    listed = set(re.findall(r"^[\w/-]+$", _INDEX, re.MULTILINE))
    rest = [
        name
        for each in sorted(source.rglob("*.md"))
        if (name := str(each.relative_to(source).with_suffix(""))) not in listed
    ]
    (source / "index.md").write_text(_INDEX.format(rest="\n".join(rest)))
    (source / "conf.py").write_text(_CONF)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-q",
        "-W",
        "--keep-going",
        str(source),
        str(site),
    ]
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        print(f"the site is in {site.relative_to(ROOT)}: open {site.relative_to(ROOT)}/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
