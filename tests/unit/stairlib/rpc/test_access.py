"""Who a certificate says that its owner is. The table itself: tests/tidy/test_access.py."""

from __future__ import annotations

import pytest

from stairlib.model.errors import RefusedError
from stairlib.rpc.access import ANYBODY, Role, allowed, certificate_caller, require

REPAIR = "/stairwell.downstairs.v1.RepairService/StreamExtent"


@pytest.mark.parametrize(
    ("uris", "names", "roles", "name"),
    [
        (["stairwell://viewer/eve"], [], {Role.VIEWER}, "eve"),
        (["stairwell://operator/otto", "stairwell://viewer/otto"], [], {Role.OPERATOR, Role.VIEWER},
         "otto"),
        (["spiffe://x/y", "stairwell://daemon/ds1"], ["ds1.example"], {Role.DAEMON}, "ds1"),
        ([], ["downstairs1"], {Role.DAEMON}, "downstairs1"),
        (["stairwell://daemon"], [], {Role.DAEMON}, "shown"),
    ],
)  # fmt: skip
def test_roles_and_names(uris: list[str], names: list[str], roles: set[Role], name: str) -> None:
    caller = certificate_caller(uris, names, "shown")
    assert caller.roles == roles
    assert caller.name == name


@pytest.mark.parametrize(
    "uris",
    [
        [], ["stairwell://root/x"], ["https://daemon/x"], ["stairwell:daemon/x"],
        ["stairwell:///daemon/x"], ["stairwell://daemon.example/x"], ["stairwell://daemon@x/y"],
        ["stairwell://daemon:1/y"], ["stairwell://DAEMON/x"], ["xstairwell://daemon/x"], ["[", ""],
        ["stairwell://[daemon/x"], [" stairwell://daemon/x"], ["stairwell://daemon/x?y"],
        ["stairwell://daemon/x\n"], ["stairwell://daemon/" + "x" * 65], ["stairwell://daemon/a/b"],
        ["STAIRWELL://daemon/x"],
    ],
)  # fmt: skip
def test_what_names_no_role(uris: list[str]) -> None:
    with pytest.raises(RefusedError) as refused:
        certificate_caller(uris, ["downstairs3", "downstairs", "xdownstairs0"], "shown")
    assert refused.value.reason == "NO_ROLE"
    assert "shown" in refused.value.message


def test_a_long_name_is_cut() -> None:
    assert len(certificate_caller(["stairwell://viewer"], [], "x" * 9999).name) <= 128


def test_in_plain_text_everybody_may_do_what_is_in_the_table() -> None:
    require(ANYBODY, REPAIR)
    with pytest.raises(RefusedError):
        require(ANYBODY, REPAIR + "x")


def test_repairs_are_for_daemons_and_orders_for_operators() -> None:
    assert allowed(REPAIR) == {Role.DAEMON}
    assert allowed("/stairwell.vmmd.v1.MachineService/DeleteMachine") == {Role.DAEMON}
    assert allowed("/stairwell.controlplane.v1.DiskService/ReplaceVcr") == {Role.OPERATOR}
    assert Role.DAEMON not in allowed("/stairwell.controlplane.v1.DiskService/ListDisks")
