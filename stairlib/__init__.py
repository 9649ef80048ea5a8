"""Shared by the programs: model, wire, rpc, telemetry and runtime."""

import os

# Our daemons start other programs but never go on in a forked copy of themselves. gRPC's
# preparations for that cost a pause and a line on stderr at each start; it reads this when it is
# imported, so it is said here, before anything of ours imports it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
