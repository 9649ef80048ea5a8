"""Who may call what: the roles, the one table of all methods, and who a caller is.

A caller is known by its certificate or by a bearer token. A certificate names roles in URIs among
its subject alternative names, `stairwell://ROLE/NAME`; one for the name of a slot (`downstairs0`)
is a daemon's. Invariants: a method that is not in the table may be called by nobody; a certificate
without a role may call nothing but health; a token never reaches a log, a span or an error.

Errors: RefusedError NO_ROLE and ROLE_NEEDED; UnauthenticatedError TOKEN_NEEDED, TOKEN_UNKNOWN and
TOKEN_EXPIRED.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from stairlib.model.errors import RefusedError

URI_SCHEME: Final = "stairwell"
# The certificate of a downstairs may be for any of these, or for the host it is reached by.
SLOT_NAMES: Final = ("downstairs0", "downstairs1", "downstairs2")
_SHOWN_MAX: Final = 128


class Role(enum.StrEnum):
    """What a caller is. The values are those of certificates and of the file of tokens."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    DAEMON = "daemon"


_ROLE_URI: Final = re.compile(
    rf"{URI_SCHEME}://(?P<role>{'|'.join(Role)})(?:/(?P<name>[A-Za-z0-9][A-Za-z0-9._@-]{{0,63}}))?",
    re.ASCII,
)


class Shown(enum.Enum):
    """What a caller is known by; nothing but its address where it has shown neither."""

    NOTHING = "address"
    CERTIFICATE = "certificate"
    TOKEN = "token"  # noqa: S105 - the word, no token


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a name for logs, all roles of it, and what it has shown."""

    name: str
    roles: frozenset[Role]
    shown: Shown = Shown.NOTHING


# Nobody was asked who they are: plain text, where whoever can connect may do everything.
ANYBODY: Final = Caller("anybody", frozenset(Role))

_HEALTH: Final = "/grpc.health.v1.Health/"
_REFLECTION: Final = ("/grpc.reflection.v1.", "/grpc.reflection.v1alpha.")

# People, through the control plane. Daemons have no business there: nothing calls upwards.
_SEES: Final = frozenset({Role.VIEWER, Role.OPERATOR})
_DOES: Final = frozenset({Role.OPERATOR})
# Daemons among themselves. People may look, so that they can find out what is wrong; changes they
# make through the control plane, which records them.
_TOLD: Final = frozenset(Role)
_INNER: Final = frozenset({Role.DAEMON})
# By hand, on what no control plane has to do with; contents of disks and consoles too.
_BY_HAND: Final = frozenset({Role.OPERATOR, Role.DAEMON})

_TABLE: Final[dict[str, dict[frozenset[Role], str]]] = {
    "stairwell.controlplane.v1.InstanceService": {
        _SEES: "GetInstance ListInstances WatchInstance",
        _DOES: "CreateInstance SetInstanceState DeleteInstance SignalGuest RunGuestWorkload"
        " PlugDisk UnplugDisk",
    },
    "stairwell.controlplane.v1.SerialService": {_DOES: "Attach GetHistory"},
    "stairwell.controlplane.v1.DiskService": {
        _SEES: "GetDisk ListDisks WatchDisk GetDiskHistory GetDiskExtents WatchDiskExtents",
        _DOES: "ReplaceVcr VerifyDisk SnapshotDisk StartScrub StopScrub",
    },
    "stairwell.controlplane.v1.VcrService": {_SEES: "CheckVcr CompareVcrs"},
    "stairwell.controlplane.v1.ReplacementService": {
        _SEES: "GetReplacement ListReplacements WatchReplacement GetReplacementTrace",
        _DOES: "StartReplacement PauseReplacement ResumeReplacement CancelReplacement"
        " RetryReplacement SetRepairLimits",
    },
    "stairwell.controlplane.v1.FleetService": {
        _SEES: "ListDownstairs ListAgents GetFleetPolicy GetDrain ListDrains WatchDrain",
        _DOES: "RegisterDownstairs DeregisterDownstairs RegisterAgent DeregisterAgent"
        " SetFleetPolicy DrainDownstairs CancelDrain",
    },
    "stairwell.vmmd.v1.MachineService": {
        _TOLD: "GetMachine ListMachines WatchMachine",
        _INNER: "EnsureMachine SetMachineState DeleteMachine SignalGuest PlugDisk UnplugDisk",
    },
    "stairwell.vmmd.v1.VolumeService": {
        _TOLD: "GetVolumeInfo WatchVolume GetVolumeHistory GetExtents WatchExtents",
        _INNER: "ReplaceVcr VerifyVolume Snapshot StartScrub StopScrub HoldRepair RepairMember"
        " TakeBackReplacement SetRepairLimits",
    },
    "stairwell.vmmd.v1.GuestService": {_INNER: "RunWorkload"},
    "stairwell.vmmd.v1.SerialService": {_BY_HAND: "Attach GetHistory"},
    # On a unix socket of vmmd's own, where nobody is asked; in the table like all others.
    "stairwell.vmmd.v1.MachineProcessService": {
        _INNER: "Configure RequestState WatchState SignalGuest PlugDisk UnplugDisk GetFigures",
    },
    "stairwell.downstairs.v1.BlockService": {
        _INNER: "OpenSession Data",
        _BY_HAND: "Read Write Flush",
    },
    "stairwell.downstairs.v1.RegionService": {
        _TOLD: "GetRegion ListChanges ListSnapshots",
        _BY_HAND: "VerifyRegion DeleteSnapshot",
    },
    "stairwell.downstairs.v1.RepairService": {
        _INNER: "GetExtentContexts StreamExtent OpenBlockConnection"
    },
    "stairwell.agent.v1.AgentService": {
        _TOLD: "GetRegion ListRegions WatchRegions ListSnapshots GetHost",
        _BY_HAND: "CreateRegion DestroyRegion CreateSnapshot DeleteSnapshot",
    },
    "stairwell.dsc.v1.DscService": {
        _TOLD: "ListRegions GetRegionInfo",
        _BY_HAND: "Start Stop SetRestart SetRandomStop Shutdown",
    },
    "stairwell.telemetry.v1.TraceService": {_TOLD: "CollectTrace"},
    "stairwell.telemetry.v1.ConfigurationService": {_TOLD: "CollectConfigurations"},
}

EXPORTS: Final = _DOES
"""Who may read and write disks over NBD on a network: people alone. A downstairs keeps ciphertext
where a volume has a key, and its certificate must not be good for what is in it."""

METHODS: Final[Mapping[str, frozenset[Role]]] = {
    f"/{service}/{name}": roles
    for service, rows in _TABLE.items()
    for roles, names in rows.items()
    for name in names.split()
}
"""Every method, as gRPC writes it, and the roles that may call it."""


def is_open(method: str) -> bool:
    """Whether callers are not asked who they are: health, for those who start daemons."""
    return method.startswith(_HEALTH)


def allowed(method: str) -> frozenset[Role]:
    """The roles that may call a method."""
    if method.startswith(_REFLECTION):
        return _TOLD
    return METHODS.get(method, frozenset())


def certificate_caller(uris: Iterable[str], dns_names: Iterable[str], shown: str) -> Caller:
    """Who has a certificate for these; `shown` names one that has no name of ours.

    RefusedError NO_ROLE where it names no role.
    """
    names, roles = [], set()
    for uri in uris:
        # By the letter: a library that reads URIs would forgive what no authority should sign.
        if found := _ROLE_URI.fullmatch(uri):
            roles.add(Role(found["role"]))
            names.append(found["name"])
    slots = [name for name in dns_names if name in SLOT_NAMES]
    if slots:
        roles.add(Role.DAEMON)
    name = next(filter(None, (*names, *slots, shown)), "")[:_SHOWN_MAX]
    if not roles:
        raise RefusedError(
            f"the certificate of {name or 'the caller'} names no role: it needs one of "
            + ", ".join(f"{URI_SCHEME}://{role}/NAME" for role in Role)
            + " among its subject alternative names (`stairwell pki issue` makes such)",
            reason="NO_ROLE",
            caller=name,
        )
    return Caller(name, frozenset(roles), Shown.CERTIFICATE)


def require(caller: Caller, method: str) -> None:
    """RefusedError ROLE_NEEDED unless one of the caller's roles may call the method."""
    _require(caller, allowed(method), method.rpartition(".")[2], method)


def require_exports(caller: Caller) -> None:
    """RefusedError ROLE_NEEDED unless the caller may have disks over NBD."""
    _require(caller, EXPORTS, "a disk over NBD", "nbd")


def _require(caller: Caller, wanted: frozenset[Role], what: str, method: str) -> None:
    if caller.roles & wanted:
        return
    have = " and ".join(sorted(caller.roles))
    if not wanted:
        text = f"{what} may be called by nobody: it is in no table of roles"
    else:
        text = (
            f"{what} takes the role {' or '.join(sorted(wanted))}, and {caller.name} has {have}: "
            "use a certificate or token of that role"
        )
    raise RefusedError(
        text,
        reason="ROLE_NEEDED",
        method=method,
        caller=caller.name,
        roles=",".join(sorted(wanted)),
    )
