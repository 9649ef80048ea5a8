"""Refuses the calls of who calls too often, at the door of a server.

Callers are told apart by who they are (a certificate's or a token's name), else by the address
they come from; who does not get in by certificate or token is counted by address as well. Not
counted are health, which those who start daemons ask for, unix sockets, which are their owner's
alone, and, where `spares_daemons` is said, whatever daemons call: in plain text nobody can be told
from a daemon there. Invariants: no name of a caller is in a metric; a flood is one line of the log
for each caller now and then.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from opentelemetry.metrics import CallbackOptions, Observation

from stairlib.model.call_rate import CallRate, CallRates
from stairlib.model.errors import CallRateError
from stairlib.rpc import access
from stairlib.rpc.access import Caller, Shown
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.metrics import Metric

if TYPE_CHECKING:
    from stairlib.telemetry.metrics import Metrics

_log = get_logger(__name__)

REFUSED: Final = Metric(
    "stairwell.rpc.refused",
    "counter",
    "{call}",
    "Calls that were refused because their caller makes too many, by what the caller is known by:"
    " certificate, token, or address",
    ("by",),
)
RPC_METRICS: Final = (REFUSED,)
# Whoever has an IPv6 address has 2^64 of them.
_V6_PREFIX: Final = 64


class CallGuard:
    """Of one server. `rate` None: everybody may call as often as they can."""

    def __init__(
        self,
        rate: CallRate | None,
        *,
        spares_daemons: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = CallRates(rate) if rate is not None else None
        self._spares_daemons = spares_daemons
        self._clock = clock
        self.refused: Counter[Shown] = Counter()

    def admit(self, caller: Caller, method: str, peer: str) -> None:
        """CallRateError unless the caller may call now; `peer` is gRPC's word for the other end."""
        spared = access.Role.DAEMON in caller.roles & access.allowed(method)
        if self._spares_daemons and spared:
            return
        if caller.shown is Shown.NOTHING or not caller.name:
            self.admit_address(peer)
        else:
            self._take(caller.shown, caller.name)

    def admit_address(self, peer: str) -> None:
        """The same of somebody of whom no more is known."""
        host = peer_host(peer)
        if host:
            self._take(Shown.NOTHING, host)

    def observe(self, metrics: Metrics) -> None:
        """Tells how many were refused from now on."""

        def read(_: CallbackOptions) -> Iterable[Observation]:
            for shown in Shown:
                yield Observation(self.refused[shown], {"by": shown.value})

        metrics.observe(REFUSED, read)

    def _take(self, shown: Shown, name: str) -> None:
        if self._rates is None:
            return
        verdict = self._rates.take((shown, name), self._clock())
        if not verdict.wait:
            return
        self.refused[shown] += 1
        rate = self._rates.rate.per_second
        if verdict.tell:
            _log.warning(
                "calls refused: too many of one caller",
                caller=name, by=shown.value, refused=verdict.tell, per_second=rate,
            )  # fmt: skip
        # Rounded up: who comes back a little too early is refused again.
        seconds = math.ceil(verdict.wait * 1000) / 1000
        raise CallRateError(
            f"{name} makes more than {rate:g} calls a second here: try again in {seconds:g} s",
            seconds,
            caller=name,
        )


def peer_host(peer: str) -> str:
    """The host of gRPC's word for a peer, as "ipv4:10.0.0.1:4711": an IPv4 address, the network of
    an IPv6 one, or empty for a unix socket."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return rest
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if mapped is not None:
        return str(mapped)
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))
    return str(address)
