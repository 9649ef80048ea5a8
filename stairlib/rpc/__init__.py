"""How the daemons speak gRPC: servers, channels, interceptors, the one error table.

Our daemons start other programs but never go on in a forked copy of themselves: gRPC's preparations
for that are off, with the line it prints at every start of a program while calls are running.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
