"""The web console over HTTP, on a control plane with scripted peers."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.console.protection import REQUEST_BYTES_MAX, SECURITY_HEADERS
from controlplane.daemon import ControlPlane
from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish
from stairlib.rpc.server import Security, TokenPort
from stairlib.rpc.tls import TlsFiles
from stairlib.rpc.tokens import TokenBook, add_line, new_token
from stairlib.runtime.addresses import parse_address
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import EXAMPLES, SECONDS, House, house

HOST = "127.0.0.1"
OURS = {"x-stairwell-console": "1"}
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", console=f"{HOST}:0") as found:
        await found.create_running()
        yield found


@pytest.fixture
async def web(home: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=home.control.console_url, headers=OURS, timeout=SECONDS
    ) as client:
        yield client


async def call(web: httpx.AsyncClient, name: str, /, **body: Any) -> Any:
    answer = await web.post(f"/api/call/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def events(
    web: httpx.AsyncClient, name: str, /, **body: Any
) -> AsyncIterator[tuple[str, Any]]:
    """(kind, data) of a watch, as they come."""
    kind = ""
    async with web.stream("POST", f"/api/watch/{name}", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                yield kind, json.loads(line[6:])


async def test_a_replacement_is_watched_from_its_start_to_its_end(
    home: House, web: httpx.AsyncClient
) -> None:
    answer = await home.replace(home.vcr())
    reached, ended = [], False
    async with asyncio.timeout(SECONDS):
        async for kind, data in events(
            web, "ReplacementService/WatchReplacement", id=answer.replacement_id
        ):
            if kind == "end":
                ended = True
                continue
            reached += [each["state"][18:] for each in data["transitions"]]
            if data["replacement"]["state"] == "REPLACEMENT_STATE_REPAIR":
                await home.vmmd.finish("block2", 2)
    assert ended
    assert reached == ["PREFLIGHT", "RECORD", "APPLY", "REPAIR", "VERIFY", "RETIRE", "DONE"]


async def test_limit_pause_resume_and_cancel_act(home: House, web: httpx.AsyncClient) -> None:
    one = (await home.replace(home.vcr())).replacement_id
    await home.wait_replacement(one, "REPAIR")
    await call(web, "ReplacementService/SetRepairLimits", id=one, bytesPerSecondMax="1048576")
    assert home.vmmd.limits[-1].bytes_per_second_max == 1 << 20
    await call(web, "ReplacementService/PauseReplacement", id=one)
    await home.wait_replacement(one, "PAUSED")
    await call(web, "ReplacementService/ResumeReplacement", id=one)
    await home.wait_replacement(one, "REPAIR")
    said = await call(web, "ReplacementService/CancelReplacement", id=one)
    assert said["outcome"].startswith("CANCEL_OUTCOME_")


async def test_the_overview_tells_all_there_is_and_what_changes(
    home: House, web: httpx.AsyncClient
) -> None:
    replacement = ""
    async with asyncio.timeout(SECONDS):
        async for _kind, data in events(web, "overview"):
            disks, downstairs = data["disks"]["changed"], data["downstairs"]["changed"]
            if data["whole"]:
                assert [(disk["name"], len(disk["slots"])) for disk in disks] == [("block2", 3)]
                assert {each["address"] for each in downstairs} >= set(home.targets(0, 1))
                replacement = (await home.replace(home.vcr())).replacement_id
            elif disks and disks[0]["replacementId"]:
                assert disks[0]["replacementId"] == replacement
                return


async def test_the_overview_tells_only_what_changed(home: House, web: httpx.AsyncClient) -> None:
    disk = home.disk_json() | {"name": "other"}
    opts = disk["volume_construction_request"]["sub_volumes"][0]["opts"]
    disk["volume_construction_request"]["id"] = opts["id"] = str(uuid.uuid4())
    opts["target"] = [f"127.1.1.{number}:8810" for number in (1, 2, 3)]
    await home.create("vm-other", disks=[disk])
    told = []
    async with asyncio.timeout(SECONDS):
        async for _kind, data in events(web, "overview"):
            disks = data["disks"]
            told.append(([disk["name"] for disk in disks["changed"]], disks["gone"]))
            if data["whole"]:
                assert told == [(["block2", "other"], [])]
                home.vmmd.slot("other", 2).state = volume_pb.SLOT_STATE_LIVE_REPAIR
            elif disks["changed"]:
                assert told[-1] == (["other"], [])
                gone = instance_pb.DeleteInstanceRequest(name="vm-other")
                await home.instances.DeleteInstance(gone, timeout=SECONDS)
            elif disks["gone"]:
                assert told[-1] == ([], ["other"])
                return
            else:
                assert len(json.dumps(data)) < 300, "nothing changed: nothing is told"


async def test_a_stop_does_not_wait_for_watchers(tmp_path: Path) -> None:
    async with house(tmp_path / "data", console=f"{HOST}:0") as found:
        await found.create_running()
        client = httpx.AsyncClient(
            base_url=found.control.console_url, headers=OURS, timeout=SECONDS
        )
        kinds = []

        async def look() -> None:
            async for kind, data in events(client, "DiskService/WatchDisk", name="block2"):
                kinds.append((kind, data.get("reason")))
                seen.set()

        seen = asyncio.Event()
        looking = asyncio.create_task(look())
        await asyncio.wait_for(seen.wait(), SECONDS)
    await asyncio.wait_for(looking, SECONDS)
    await client.aclose()
    assert kinds[-1] == ("failure", "STOPPING")


async def test_what_other_sites_ask_is_refused(home: House, web: httpx.AsyncClient) -> None:
    before = home.state()
    one = {"name": "block2", "vcr_json": json.dumps(home.vcr())}
    for headers, reason in (
        ({"origin": "https://evil.example"}, "FOREIGN_ORIGIN"),
        ({"origin": "null"}, "FOREIGN_ORIGIN"),
        ({"sec-fetch-site": "cross-site"}, "FOREIGN_ORIGIN"),
        ({"host": "evil.example"}, "FOREIGN_HOST"),
        ({"x-stairwell-console": ""}, "HEADER_NEEDED"),
    ):
        answer = await web.post("/api/call/DiskService/ReplaceVcr", json=one, headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (403, reason), headers
    # What a form of another site can send without asking.
    answer = await web.post(
        "/api/call/DiskService/ReplaceVcr", content=json.dumps(one),
        headers={"content-type": "text/plain"},
    )  # fmt: skip
    assert answer.json()["reason"] == "NO_JSON"
    assert home.state() == before
    own = {"origin": home.control.console_url.rstrip("/")}
    answer = await web.post("/api/call/DiskService/ReplaceVcr", json=one, headers=own)
    assert answer.status_code == 200, answer.text


async def test_pages_come_with_a_policy_and_need_nothing_from_elsewhere(
    web: httpx.AsyncClient,
) -> None:
    page = await web.get("/")
    assert page.status_code == 200
    names = [
        "chart", "console", "desk", "disk", "draw", "extents", "link", "overview", "pages",
        "replacement",
    ]  # fmt: skip
    texts = [page.text, (await web.get("/console.css")).text]
    texts += [(await web.get(f"/{name}.js")).text for name in names]
    for name, value in SECURITY_HEADERS.items():
        assert page.headers[name] == value
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers
    for text in texts:
        assert "//" not in text.replace("// ", "").replace("http://www.w3.org", ""), text
        assert "innerHTML" not in text
    assert (await web.get("/../server.py")).status_code == 404
    assert (await web.get("/server.py")).status_code == 404


async def test_large_and_senseless_requests(web: httpx.AsyncClient) -> None:
    large = b'{"text": "' + b"x" * REQUEST_BYTES_MAX + b'"}'
    headers = {"content-type": "application/json"}

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    for content in (large, chunks()):
        answer = await web.post("/api/vcr/check", content=content, headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_LARGE")
    for body, status in ((b"{", 400), (b"[" * 100_000, 400), (b"[]", 400), (b'{"text": 1}', 400)):
        answer = await web.post("/api/vcr/check", content=body, headers=headers)
        assert answer.status_code == status, body[:20]
    answer = await web.post("/api/call/DiskService/GetDisk", json={"name": {"no": 1}})
    assert answer.status_code == 400
    for name in ("DiskService/VerifyDisk", "SerialService/Attach", "DiskService/__init__", "x"):
        assert (await web.post(f"/api/call/{name}", json={})).status_code == 404, name
    answer = await web.post("/api/call/DiskService/GetDisk", json={"name": "none"})
    assert (answer.status_code, answer.json()["reason"]) == (404, "DISK_NOT_FOUND")


async def test_the_desk_names_lines_and_judges_two(home: House, web: httpx.AsyncClient) -> None:
    text = (EXAMPLES / "replace.json").read_text()
    answer = (await web.post("/api/vcr/check", json={"text": text})).json()
    assert answer["valid"], answer
    # What is sent when it is started: the request out of what the file wraps it in.
    assert json.loads(answer["request"]) == json.loads(text)["vcr"]
    wrong = text.replace('"block_size": 4096', '"block_size": 4095', 1)
    assert wrong != text
    answer = (await web.post("/api/vcr/check", json={"text": wrong})).json()
    line = wrong[: wrong.index("4095")].count("\n") + 1
    assert line in [each["line"] for each in answer["violations"]], answer
    answer = (await web.post("/api/vcr/check", json={"text": '{\n"id": }'})).json()
    assert [each["line"] for each in answer["violations"]] == [2]
    two = {
        "original": json.dumps(home.disk_json()),
        "replacement": json.dumps({"vcr": home.vcr()}),
    }
    answer = (await web.post("/api/vcr/compare", json=two)).json()
    assert answer["outcome"] == "VCR_OUTCOME_REPLACE"
    assert (answer["changed"]["old"], answer["changed"]["new"]) == tuple(home.targets(2, 3))
    assert [each["path"] for each in answer["differences"]] == [
        "sub_volumes[0].gen", "sub_volumes[0].opts.target[2]"
    ]  # fmt: skip
    answer = await web.post("/api/vcr/compare", json={**two, "original": "{}"})
    assert answer.status_code == 400
    assert answer.json()["violations"][0]["field"].startswith("original")


async def test_the_desk_marks_what_differs_in_both_texts(
    home: House, web: httpx.AsyncClient
) -> None:
    disk, vcr = home.disk_json(), home.vcr()
    region = vcr["sub_volumes"][0]
    region["opts"]["key"] = base64.b64encode(b"k" * 32).decode()
    vcr["sub_volumes"].append(home.region_json(0, 1, 2))
    texts = {
        "original": json.dumps(disk, indent=1), "replacement": json.dumps({"vcr": vcr}, indent=1)
    }  # fmt: skip
    answer = (await web.post("/api/vcr/compare", json=texts)).json()
    assert answer["outcome"] == "VCR_OUTCOME_REJECT"
    assert region["opts"]["key"] not in json.dumps(answer), "keys are never told"
    marked = {
        name: {texts[name].splitlines()[line - 1].strip() for line in answer["lines"][name]}
        for name in texts
    }
    assert marked["original"] == {'"gen": 1,', '"key": null,', f'"{home.targets(2)[0]}"'}
    for part in ('"gen": 2,', f'"{home.targets(3)[0]}"'):
        assert part in marked["replacement"]
    # A region that only one of them has is marked with all that is in it.
    added = answer["differences"][-1]
    assert (added["path"], added["change"], added["originalLine"]) == ("sub_volumes[1]", "added", 0)
    inside = [line for line in answer["lines"]["replacement"] if line > added["replacementLine"]]
    assert len(inside) == len(region) + len(region["opts"]) + 3


@pytest.fixture
def pki(tmp_path: Path) -> Authority:
    return Authority.found(tmp_path / "pki", 30)


def secured(pki: Authority, book: Path, *, tokens: bool = True) -> Security:
    made = pki.issue(Wish("controlplane", Role.DAEMON, (HOST,)), 30, replace=True)
    book.touch(mode=0o600)
    port = TokenPort(parse_address(f"{HOST}:0"), TokenBook(book)) if tokens else None
    files = TlsFiles(str(made.certificate), str(made.key), str(pki.root))
    return Security(files, tokens=port)


def token(book: Path, name: str, role: Role) -> dict[str, str]:
    made, line = new_token(name, role, 10, datetime.now(UTC).date())
    add_line(book, line)
    return {**OURS, "authorization": f"Bearer {made}"}


async def test_tokens_and_roles_are_those_of_the_api(tmp_path: Path, pki: Authority) -> None:
    import ssl

    book = tmp_path / "tokens"
    security = secured(pki, book)
    trust = ssl.create_default_context(cafile=str(pki.root))
    control = ControlPlane(
        f"{HOST}:0", f"{HOST}:1", tmp_path / "data", security=security, console=f"{HOST}:0",
        grace_seconds=0,
    )  # fmt: skip
    async with (
        control,
        httpx.AsyncClient(base_url=control.console_url, verify=trust, timeout=SECONDS) as web,
    ):
        assert control.console_url.startswith("https://")
        assert (await web.get("/")).status_code == 200, "the page itself holds nothing"
        viewer, operator = token(book, "eve", Role.VIEWER), token(book, "otto", Role.OPERATOR)
        look, do = "ReplacementService/ListReplacements", "ReplacementService/PauseReplacement"

        async def ask(name: str, headers: dict[str, str]) -> tuple[int, str]:
            answer = await web.post(f"/api/call/{name}", json={"id": NOBODY} if name == do else {},
                                    headers=headers)  # fmt: skip
            return answer.status_code, answer.json().get("reason", "")

        assert await ask(look, OURS) == (401, "TOKEN_NEEDED")
        wrong = {**OURS, "authorization": "Bearer stw_wrong"}
        assert await ask(look, wrong) == (401, "TOKEN_UNKNOWN")
        assert await ask(look, viewer) == (200, "")
        assert await ask(do, viewer) == (403, "ROLE_NEEDED")
        assert await ask(do, operator) == (404, "REPLACEMENT_NOT_FOUND")
        for name in ("overview", "ReplacementService/WatchReplacement"):
            answer = await web.post(f"/api/watch/{name}", json={}, headers=OURS)
            assert answer.status_code == 401
        me = (await web.post("/api/me", json={}, headers=viewer)).json()
        assert me == {"name": "eve", "asked": True, "operator": False}


@pytest.mark.parametrize("address", ["0.0.0.0:0", "unix:/tmp/console"])
async def test_plain_text_stays_on_this_host(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidRequestError):
        async with ControlPlane(f"{HOST}:0", f"{HOST}:1", tmp_path / "data", console=address):
            pass


async def test_tls_without_tokens_is_told(tmp_path: Path, pki: Authority) -> None:
    security = secured(pki, tmp_path / "tokens", tokens=False)
    with pytest.raises(InvalidRequestError, match="--tokens"):
        async with ControlPlane(
            f"{HOST}:0", f"{HOST}:1", tmp_path / "data", security=security, console=f"{HOST}:0"
        ):
            pass
