"""Every method of every service has a role: a new one that is in no table is found here, and not by
a user who is refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from stairlib.model.errors import RefusedError
from stairlib.rpc import access
from stairlib.rpc.access import METHODS, Caller, Role

PROTOS = Path(__file__).resolve().parents[2] / "protos"
# What a viewer may be let do: begins with a word of looking.
LOOKING = ("Get", "List", "Watch", "Check", "Compare", "Collect")


def defined() -> set[str]:
    """All methods, as gRPC writes them, of the checked-in stubs."""
    found = set()
    for path in PROTOS.rglob("*_pb2.py"):
        name = ".".join(path.relative_to(PROTOS).with_suffix("").parts)
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def test_every_method_has_roles_and_every_role_a_method() -> None:
    methods = defined()
    assert len(methods) > 80
    assert methods - METHODS.keys() == set(), "without a role: add them to stairlib.rpc.access"
    assert METHODS.keys() - methods == set(), "no such method: take them out of the table"
    assert all(METHODS.values())


def test_a_method_is_named_once() -> None:
    for service, rows in access._TABLE.items():
        names = [name for names in rows.values() for name in names.split()]
        assert len(names) == len(set(names)), service


def test_a_viewer_only_looks_and_never_at_what_is_in_disks_or_consoles() -> None:
    for method, roles in METHODS.items():
        service, _, name = method.lstrip("/").partition("/")
        if Role.VIEWER in roles:
            assert name.startswith(LOOKING), method
            assert "SerialService" not in service, method
            assert "BlockService" not in service, method
            assert "RepairService" not in service, method


def test_who_may_look_may_also_change_what_people_change() -> None:
    for method, roles in METHODS.items():
        if Role.VIEWER in roles:
            assert Role.OPERATOR in roles, method


def test_an_unknown_method_may_be_called_by_nobody() -> None:
    everything = Caller("all", frozenset(Role))
    for method in ("/stairwell.controlplane.v1.DiskService/Format", "/x/y", "", "/"):
        assert not access.is_open(method)
        with pytest.raises(RefusedError, match="may be called by nobody"):
            access.require(everything, method)


def test_nobody_is_asked_for_health_alone() -> None:
    assert access.is_open("/grpc.health.v1.Health/Check")
    for method in [*METHODS, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]:
        assert not access.is_open(method)
