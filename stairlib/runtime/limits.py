"""Limits and intervals that several programs share, each with its reason.

A limit of one program alone sits in the module that enforces it. Units are in the names.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# What every gRPC implementation receives by default: a client with no options can talk to us.
RPC_MESSAGE_BYTES: Final = 4 * MIB
# Hand-made block reads and writes over gRPC stay well below the message limit; bulk data travels
# in frames on the data connection.
RPC_BLOCK_BYTES: Final = 1 * MIB
# Calls at once in one daemon, watches included. Beyond it RESOURCE_EXHAUSTED instead of memory.
RPC_CONCURRENT_CALLS: Final = 1024
# For a unary call whose caller gave no timeout: no call waits for ever.
RPC_DEFAULT_SECONDS: Final = 60.0
# A dead peer under an idle watch is noticed within half a minute; servers allow twice the rate.
RPC_KEEPALIVE_SECONDS: Final = 20
RPC_KEEPALIVE_TIMEOUT_SECONDS: Final = 10
RPC_KEEPALIVE_ALLOWED_SECONDS: Final = 10
# Who connects and does not say what it wants, over TLS or not, is cut off (gRPC's own: 2 minutes).
RPC_HANDSHAKE_SECONDS: Final = 10
# A daemon that comes back is found again this soon (gRPC's own limit is two minutes).
RPC_RECONNECT_MAX_SECONDS: Final = 2

# Silence on a data connection: three lost pings, and room for a long fdatasync on the other side.
SESSION_PING_SECONDS: Final = 5.0
SESSION_SILENCE_SECONDS: Final = 20.0
# From OpenSession's answer to HELLO on the data connection: one round trip, generously.
SESSION_TOKEN_SECONDS: Final = 10.0

# What a supervisor (docker, systemd) grants by default before it kills is 10 s or more.
STOP_GRACE_SECONDS: Final = 5.0
