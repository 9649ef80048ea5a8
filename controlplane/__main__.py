"""The `controlplane` command."""

from __future__ import annotations

import sys

from controlplane import database
from controlplane.config import TLS_FLAGS, Config, parse
from controlplane.daemon import ControlPlane
from stairlib.rpc.tls import tls_files
from stairlib.runtime.process import StopSignal, run
from stairlib.telemetry import logs


def main() -> None:
    """Parses the command line and serves until a signal, or looks after the database."""
    config = parse(sys.argv[1:])
    if config.command != "run":
        sys.exit(
            database.run(
                config.place, migrate=config.command.startswith("migrate"), as_json=config.as_json
            )
        )
    logs.configure("controlplane", level=config.log_level, json=config.log_json)
    sys.exit(run(lambda stop: _serve(config, stop)))


async def _serve(config: Config, stop: StopSignal) -> int:
    """Serves; one line on stdout says when and where."""
    tls = tls_files(*config.downstairs_tls, names=TLS_FLAGS)
    if tls is not None:
        tls.check()
    async with ControlPlane(
        config.address, config.vmmd, config.place, downstairs_tls=tls
    ) as control:
        print(
            f"controlplane ready on {control.address} (vmmd {config.vmmd}, state in"
            f" {config.place.words})",
            flush=True,
        )
        await stop.event.wait()
    return 0


if __name__ == "__main__":
    main()
