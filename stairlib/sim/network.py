"""A simulated network: hosts, the ways between them, connections and calls.

What is promised is what TCP promises, and no more: on one connection things arrive in order and
once, or the connection ends; between connections there is no order. A way may be slow, or blocked
in one direction or both. What is sent into a blocked way waits, as retransmission makes it, and
arrives should the way open again; an end that hears nothing for SILENCE seconds gives up by itself,
and the other end learns of that only when something can reach it. A process that is killed closes
its connections; a host that loses power just falls silent.

Calls (one request, one answer) have a deadline. A request may be carried out although its caller
has given up, and an answer may be lost although the request was carried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from stairlib.sim.chance import Chance
from stairlib.sim.schedule import Schedule, Timer

# Both ends ping every 5 s and give up after 20 s without a word: between 15 and 25 s of a block.
SILENCE_SECONDS = (15.0, 25.0)
# A request that waited in a blocked way beyond its deadline is followed at once by its caller's
# cancellation: as often as not it is carried out all the same.
LATE_EXECUTION = 0.5


class Way:
    """From one host to another. `low` and `high` bound a message's delay in seconds."""

    __slots__ = ("blocked", "high", "low", "since", "streams")

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high
        self.blocked = False
        # Counts blocks, so that a silence is of one block and not of two.
        self.since = 0
        self.streams: list[Stream] = []


class Stream:
    """One direction of a connection or call: what is put in comes out in order, until it is cut."""

    __slots__ = ("_clear_at", "_deliver", "_network", "_waiting", "cut", "held", "way")

    def __init__(self, network: Network, way: Way, deliver: Callable[[Any], None]) -> None:
        self._network = network
        self._deliver = deliver
        self._waiting: deque[Any] = deque()
        self._clear_at = 0.0
        self.way = way
        self.held = 0
        self.cut = False
        way.streams.append(self)

    def send(self, item: Any) -> None:
        """Puts one thing in."""
        if self.cut:
            return
        self._waiting.append(item)
        self._start()

    def _start(self) -> None:
        network, way = self._network, self.way
        schedule = network.schedule
        now = schedule.now
        at = max(self._clear_at, now + network.chance.uniform(way.low, way.high))
        self._clear_at = at
        schedule.later(at - now, self._arrive)

    def _arrive(self) -> None:
        if self.cut:
            return
        if self.way.blocked:
            self.held += 1
            return
        self._deliver(self._waiting.popleft())

    def opened(self) -> None:
        """The way is open again: what was held starts anew."""
        held, self.held = self.held, 0
        for _ in range(held):
            self._start()

    def end(self) -> None:
        """Nothing comes out any more."""
        if not self.cut:
            self.cut = True
            self._waiting.clear()
            self.way.streams.remove(self)


class End:
    """One end of a connection. `received(item)` and `closed(reason)` are set by who holds it;
    `closed` is called once, never after this end's own `close`."""

    __slots__ = ("_connection", "_out", "closed", "host", "open", "received")

    def __init__(self, connection: Connection, host: str) -> None:
        self._connection = connection
        self.host = host
        self.open = True
        self._out: Stream | None = None
        self.received: Callable[[Any], None] = _nothing
        self.closed: Callable[[str], None] = _nothing

    def attach(self, out: Stream) -> None:
        """Where this end sends; by the connection."""
        self._out = out

    def send(self, item: Any) -> None:
        """Sends it, if the connection still stands."""
        if self.open and self._out is not None:
            self._out.send((True, item))

    def close(self, reason: str, *, abort: bool = False) -> None:
        """Ends it from here. What was sent before still arrives, unless `abort`: then a part of
        it."""
        if self.open:
            self.open = False
            self._connection.closing(self, reason, abort=abort)

    def take(self, message: tuple[bool, Any]) -> None:
        """From the stream: an item, or the other end's closing."""
        if not self.open:
            return
        is_item, item = message
        if is_item:
            self.received(item)
        else:
            self.give_up(item)

    def abandon(self, reason: str) -> None:
        """Ends it from here because nothing was heard; the other end is told if it can be."""
        if self.open:
            self.close(reason)
            self.closed(reason)

    def give_up(self, reason: str) -> None:
        """The connection is over for this end; what it sent and was not read is lost."""
        if self.open:
            self.open = False
            self._connection.over()
            self.closed(reason)


class Connection:
    """Two ends. Made by `Network.connect`."""

    def __init__(self, network: Network, client: str, server: str) -> None:
        self._network = network
        self.client = End(self, client)
        self.server = End(self, server)
        self._there = Stream(network, network.way(client, server), self.server.take)
        self._back = Stream(network, network.way(server, client), self.client.take)
        self.client.attach(self._there)
        self.server.attach(self._back)

    @property
    def ends(self) -> tuple[End, End]:
        """Client and server."""
        return self.client, self.server

    def closing(self, end: End, reason: str, *, abort: bool) -> None:
        """One end has closed: the other hears of it behind what was sent."""
        out, other = self._sides(end)
        into = self._there if other is self.client else self._back
        into.end()
        if abort:
            self._network.schedule.later(
                self._network.chance.uniform(out.way.low, out.way.high), self._reset, other, reason
            )
        else:
            out.send((False, reason))
        self._forget_if_over()

    def _reset(self, other: End, reason: str) -> None:
        """An abort arrives: at once if the way is open, by silence if it is not."""
        out = self._back if other is self.client else self._there
        if not out.way.blocked:
            other.give_up(reason)

    def over(self) -> None:
        """One end has given up: nothing gets through any more."""
        self._there.end()
        self._back.end()
        self._forget_if_over()

    def _sides(self, end: End) -> tuple[Stream, End]:
        if end is self.client:
            return self._there, self.server
        return self._back, self.client

    def _forget_if_over(self) -> None:
        if not self.client.open and not self.server.open:
            self._network.forget(self)


class Network:
    """All hosts. `low`, `high`: the usual delay of a message in seconds."""

    def __init__(self, schedule: Schedule, chance: Chance, low: float, high: float) -> None:
        self.schedule = schedule
        self.chance = chance
        self.low = low
        self.high = high
        self._ways: dict[tuple[str, str], Way] = {}
        self._connections: dict[Connection, None] = {}
        self._dark: set[str] = set()
        # Ends that gave up because nothing was heard; calls whose caller gave up, and those of them
        # that were carried out all the same.
        self.silences = 0
        self.calls_late = 0
        self.calls_carried_out_late = 0

    def way(self, source: str, target: str) -> Way:
        """The way from one host to another."""
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = Way(self.low, self.high)
        return way

    # ---- connections

    def connect(self, client: str, server: str) -> Connection:
        """A connection that stands; the server's end has to be given to the server."""
        connection = Connection(self, client, server)
        self._connections[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        """Both ends are closed."""
        self._connections.pop(connection, None)

    def break_connections(self, one: str, other: str, reason: str) -> int:
        """Resets every connection between two hosts; how many."""
        found = [c for c in self._connections if {e.host for e in c.ends} == {one, other}]
        for connection in found:
            for end in connection.ends:
                delay = self.chance.uniform(0, self.high)
                self.schedule.later(delay, end.give_up, reason)
        return len(found)

    def killed(self, host: str) -> None:
        """The host's process is gone and its system resets what it had open."""
        for connection in list(self._connections):
            for end in connection.ends:
                if end.host == host and end.open:
                    end.received = end.closed = _nothing
                    end.close("connection reset", abort=self.chance.random() < 0.5)

    def went_dark(self, host: str) -> None:
        """The host lost power: nobody is told; who is connected finds out by silence."""
        self._dark.add(host)
        for connection in list(self._connections):
            for end, other in (connection.ends, connection.ends[::-1]):
                if end.host == host and end.open:
                    end.received = end.closed = _nothing
                    end.open = False
                    connection.over()
                    silence = self.chance.uniform(*SILENCE_SECONDS)
                    self.schedule.later(silence, self._unheard, other)

    def _unheard(self, end: End) -> None:
        if end.open:
            self.silences += 1
            end.give_up("nothing was heard")

    def came_back(self, host: str) -> None:
        """The host has power: it resets what it does not know any more."""
        if host not in self._dark:
            return
        self._dark.discard(host)
        for connection in list(self._connections):
            for end, other in (connection.ends, connection.ends[::-1]):
                if end.host == host and not end.open and other.open:
                    self.schedule.later(
                        self.chance.uniform(0, 5.0), other.give_up, "connection reset"
                    )

    def is_dark(self, host: str) -> bool:
        """Whether the host has no power."""
        return host in self._dark

    # ---- ways

    def slow(self, one: str, other: str, factor: float) -> None:
        """Delays between two hosts, in both directions, are so many times the usual ones."""
        for way in (self.way(one, other), self.way(other, one)):
            way.low, way.high = self.low * factor, self.high * factor

    def block(self, source: str, target: str) -> None:
        """Nothing gets from one host to the other until `unblock`."""
        way = self.way(source, target)
        if way.blocked:
            return
        way.blocked = True
        way.since += 1
        for connection in self._connections:
            for end, other in (connection.ends, connection.ends[::-1]):
                if end.host == target and other.host == source:
                    silence = self.chance.uniform(*SILENCE_SECONDS)
                    self.schedule.later(silence, self._silent, end, way, way.since)

    def _silent(self, end: End, way: Way, since: int) -> None:
        if way.blocked and way.since == since and end.open:
            self.silences += 1
            end.abandon("nothing was heard")

    def unblock(self, source: str, target: str) -> None:
        """The way is open; what waited in it goes on. An end whose peer has gone is reset."""
        way = self.way(source, target)
        if not way.blocked:
            return
        way.blocked = False
        for stream in list(way.streams):
            stream.opened()
        for connection in list(self._connections):
            for end, other in (connection.ends, connection.ends[::-1]):
                between = {end.host, other.host} == {source, target}
                if between and end.open and not other.open and other.host not in self._dark:
                    self.schedule.later(
                        self.chance.uniform(0, 5.0), end.give_up, "connection reset"
                    )

    def heal(self) -> None:
        """Every way is open and of the usual speed."""
        for (source, target), way in list(self._ways.items()):
            self.unblock(source, target)
            way.low, way.high = self.low, self.high

    # ---- calls

    def call(
        self,
        client: str,
        server: str,
        serve: Callable[[Callable[[Any], None]], None],
        answered: Callable[[Any], None],
        late: Callable[[], None],
        deadline: float,
    ) -> None:
        """Runs `serve(reply)` at the server; what it gives to `reply`, now or later, comes back to
        `answered`. After `deadline` seconds without an answer `late()` is called instead."""
        Call(self, client, server, serve, answered, late, deadline)


class Call:
    """One call on its way."""

    def __init__(
        self,
        network: Network,
        client: str,
        server: str,
        serve: Callable[[Callable[[Any], None]], None],
        answered: Callable[[Any], None],
        late: Callable[[], None],
        deadline: float,
    ) -> None:
        self._network = network
        self._serve = serve
        self._answered = answered
        self._late = late
        self._over = False
        self._server = server
        self._there = Stream(network, network.way(client, server), self._arrived)
        self._back = Stream(network, network.way(server, client), self._returned)
        self._timer: Timer = network.schedule.timer(deadline, self._expired)
        self._there.send(None)

    def _arrived(self, _request: Any) -> None:
        self._there.end()
        if self._network.is_dark(self._server):
            return
        if self._over:
            if self._network.chance.random() >= LATE_EXECUTION:
                return
            self._network.calls_carried_out_late += 1
        self._serve(self._back.send)

    def _returned(self, answer: Any) -> None:
        self._back.end()
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._answered(answer)

    def _expired(self) -> None:
        if not self._over:
            self._over = True
            self._back.end()
            self._network.calls_late += 1
            self._late()


def _nothing(_item: Any) -> None:
    """Nobody listens."""
