"""The `controlplane` command."""

from __future__ import annotations

import sys

from controlplane import database
from controlplane.config import TLS_FLAGS, Config, parse
from controlplane.daemon import ControlPlane
from stairlib.rpc.flags import security
from stairlib.rpc.gate import require_private
from stairlib.rpc.tls import tls_files
from stairlib.runtime.garbage import rare_full_searches
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


# The store works on a thread of its own, and both want the interpreter: with Python's usual 5 ms
# each turn of the loop would wait so long for a statement that is being made.
SWITCH_SECONDS = 0.0005


async def _serve(config: Config, stop: StopSignal) -> int:
    """Serves; one line on stdout says when and where."""
    sys.setswitchinterval(SWITCH_SECONDS)
    tls = tls_files(*config.downstairs_tls, names=TLS_FLAGS)
    if tls is not None:
        tls.check()
    assert config.security is not None
    secured = security(config.security)
    if secured.tls is None and not secured.insecure:
        require_private(config.address, "listening")
        # Keys of volumes go there.
        require_private(config.vmmd, "speaking to vmmd")
    if config.metrics and not secured.insecure:
        require_private(config.metrics, "serving metrics", tls=False)
    async with rare_full_searches(), ControlPlane(
        config.address, config.vmmd, config.place, downstairs_tls=tls, security=secured,
        metrics=config.metrics, console=config.console, settings=config.settings,
    ) as control:  # fmt: skip
        print(
            f"controlplane ready on {control.address} (vmmd {config.vmmd}, state in"
            f" {config.place.words})",
            flush=True,
        )
        if control.tokens_address:
            print(f"people with tokens on {control.tokens_address}", flush=True)
        if control.metrics_address:
            print(f"metrics on http://{control.metrics_address}/metrics", flush=True)
        if control.console_url:
            print(f"console on {control.console_url}", flush=True)
        await stop.event.wait()
    return 0


if __name__ == "__main__":
    main()
