"""The layering rules, read from the sources with ast: who may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("controlplane", "vmmd", "downstaird")
PACKAGES = (*PROGRAMS, "stairlib")
# What a pure module may never import, whatever it is imported for.
IMPURE = {
    "asyncio", "grpc", "time", "random", "os", "socket", "subprocess", "threading", "google",
    "uvloop", "selectors", "multiprocessing", "concurrent", "tempfile", "shutil", "io", "pathlib",
    "secrets", "opentelemetry", "structlog", "stairwell", "sqlalchemy",
}  # fmt: skip
PURE_OWN = ("stairlib.model", "stairlib.wire.frame", "stairlib.native")
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager"}


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def is_pure(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    pure = (("vmmd", "hw"), ("stairlib", "model"), ("stairlib", "sim"))
    return "core" in parts[:-1] or parts[:2] in pure


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_there_is_something_to_look_at() -> None:
    assert len([path for path in sources(*PACKAGES) if is_pure(path)]) > 10


def test_pure_modules_do_no_io() -> None:
    wrong = []
    for path in filter(is_pure, sources(*PACKAGES)):
        program = path.relative_to(ROOT).parts[0]
        for line, name in imports(path):
            top = name.split(".")[0]
            own = name.startswith(program) or any(name.startswith(pure) for pure in PURE_OWN)
            if top in IMPURE or (
                top in PACKAGES and not own and name not in ("stairlib", "stairlib.wire")
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not wrong, "\n".join(wrong)


def test_pure_modules_open_no_files() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in filter(is_pure, sources(*PACKAGES))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_do_not_import_each_other(program: str) -> None:
    others = set(PROGRAMS) - {program}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(program)
        for line, name in imports(path)
        if name.split(".")[0] in others
    ]
    assert not wrong, wrong


def test_the_shared_library_imports_no_program() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("stairlib")
        for line, name in imports(path)
        if name.split(".")[0] in PROGRAMS
    ]
    assert not wrong, wrong


def test_only_the_error_table_names_grpc_codes_of_the_domain() -> None:
    """Servicers and cores raise domain errors; the codes stand in stairlib/rpc alone."""
    allowed = ("stairlib/rpc/",)
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES)
        if "grpc.StatusCode." in path.read_text()
        and not str(path.relative_to(ROOT)).startswith(allowed)
    ]
    assert not wrong, wrong


def test_no_module_has_a_name_that_says_nothing() -> None:
    wrong = [
        str(path)
        for path in sources(*PACKAGES)
        if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES
    ]
    assert not wrong, wrong
