"""The vmmd command."""

from __future__ import annotations

import sys

from stairlib.runtime.process import run
from stairlib.telemetry import logs
from vmmd.config import parse_arguments
from vmmd.daemon import serve


def main(argv: list[str] | None = None) -> int:
    """Runs the daemon; returns the exit status."""
    arguments = parse_arguments(argv)
    wants = {"auto": None, "text": False, "json": True}[arguments.log_format]
    logs.configure("vmmd", level=arguments.log_level, json=wants)
    return run(lambda stop: serve(arguments, stop))


if __name__ == "__main__":
    sys.exit(main())
