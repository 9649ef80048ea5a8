"""Generates the Python stubs beside the .proto files; with --check, fails when they are not
current."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(out: Path) -> None:
    """Writes the stubs of every .proto below `protos/` to `out`, with a package file in each
    folder."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
        "-I.",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *sources,
    ]
    subprocess.run(command, cwd=PROTOS, check=True)
    (out / "stairwell" / "py.typed").touch()
    for folder in sorted({path.parent for path in (out / "stairwell").rglob("*_pb2.py")}):
        for package in (folder, *folder.parents):
            if package == out:
                break
            (package / "__init__.py").write_text('"""Generated protocol stubs."""\n')


def differences(made: Path) -> list[str]:
    """Names every generated file that differs from, or is missing in, the checked-in tree."""
    wrong = []
    for path in sorted(made.rglob("*")):
        if path.is_file():
            kept = PROTOS / path.relative_to(made)
            if not kept.exists() or not filecmp.cmp(path, kept, shallow=False):
                wrong.append(str(kept.relative_to(ROOT)))
    names = {path.relative_to(made) for path in made.rglob("*_pb2*")}
    wrong += [
        f"{path.relative_to(ROOT)} (no longer generated)"
        for path in sorted(PROTOS.rglob("*_pb2*"))
        if path.relative_to(PROTOS) not in names and "__pycache__" not in path.parts
    ]
    return wrong


def main() -> int:
    """Runs the generator; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        generate(made)
        if arguments.check:
            wrong = differences(made)
            for name in wrong:
                print(f"not current: {name}", file=sys.stderr)
            if wrong:
                print("run 'make protos' and commit the result", file=sys.stderr)
            return 1 if wrong else 0
        shutil.copytree(made, PROTOS, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
