"""The check of one construction: each rule, all problems at once, and the summary."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from controlplane.core.construction_check import check
from stairlib.model.construction import (
    DEPTH_MAX,
    NODES_MAX,
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
)
from stairlib.model.geometry import Geometry
from stairlib.model.violations import VIOLATIONS_MAX
from stairlib.wire.construction import REDACTED

ID = UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89")
KEY = Secret("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
GEOMETRY = Geometry(4096, 16384, 128)


def region(first: int = 1, **options: Any) -> RegionSpec:
    """A legal region whose targets are ports `first` to `first + 2`."""
    targets = tuple(f"127.0.0.1:{port}" for port in range(first, first + 3))
    return RegionSpec(GEOMETRY, RegionOptions(**{"id": ID, "targets": targets} | options), 1)


def volume(*subs: Construction, parent: Construction | None = None) -> VolumeSpec:
    return VolumeSpec(ID, 4096, subs, parent)


def problems(construction: Construction) -> dict[str, str]:
    return {v.field: v.reason for v in check(construction).violations}


@pytest.mark.parametrize(
    "legal",
    [
        region(),
        volume(region()),
        volume(region(), region(4), parent=volume(region(7))),
        volume(parent=region()),
        volume(FileSpec(ID, 4096, "/image")),
        UrlSpec(ID, 4096, "https://images/1"),
        region(key=KEY, flush_timeout=0.1),
        region(cert_pem="/c", key_pem="/k", root_cert_pem="/r"),
        region(targets=("down-0:8810", "down-1:8810", "down-2:8810")),
        replace(region(), geometry=Geometry(512, 1, 1)),
        replace(region(), geometry=Geometry(32768, 16384, 1)),
    ],
)
def test_legal(legal: Construction) -> None:
    report = check(legal)
    assert report.valid
    assert report.violations == ()


@pytest.mark.parametrize(
    ("construction", "field", "reason"),
    [
        (region(targets=()), "opts.target", "TARGET_COUNT"),
        (region(targets=("a:1", "b:1")), "opts.target", "TARGET_COUNT"),
        (region(targets=("a:1", "b:1", "c:1", "d:1")), "opts.target", "TARGET_COUNT"),
        (region(targets=("a:1", "b:1", "A:01")), "opts.target[2]", "DUPLICATE_TARGET"),
        (
            volume(region(), region(3)),
            "sub_volumes[1].opts.target[0]",
            "DUPLICATE_TARGET",
        ),
        (
            volume(region(), parent=volume(region(3))),
            "read_only_parent.sub_volumes[0].opts.target[0]",
            "DUPLICATE_TARGET",
        ),
        (replace(region(), geometry=Geometry(256, 1, 1)), "block_size", "BLOCK_SIZE_INVALID"),
        (replace(region(), geometry=Geometry(65536, 1, 1)), "block_size", "BLOCK_SIZE_INVALID"),
        (replace(region(), geometry=Geometry(4095, 1, 1)), "block_size", "BLOCK_SIZE_INVALID"),
        (replace(region(), geometry=Geometry(0, 1, 1)), "block_size", "BLOCK_SIZE_INVALID"),
        (FileSpec(ID, 1000, "/a"), "block_size", "BLOCK_SIZE_INVALID"),
        (UrlSpec(ID, 1000, "http://a"), "block_size", "BLOCK_SIZE_INVALID"),
        (
            replace(region(), geometry=Geometry(4096, 0, 1)),
            "blocks_per_extent",
            "EXTENT_SIZE_INVALID",
        ),
        (
            replace(region(), geometry=Geometry(4096, 131073, 1)),
            "blocks_per_extent",
            "EXTENT_SIZE_INVALID",
        ),
        (replace(region(), geometry=Geometry(4096, 1, 0)), "extent_count", "EXTENT_COUNT_INVALID"),
        (
            replace(region(), geometry=Geometry(4096, 1, (1 << 20) + 1)),
            "extent_count",
            "EXTENT_COUNT_INVALID",
        ),
        (
            VolumeSpec(ID, 512, (region(),)),
            "sub_volumes[0].block_size",
            "BLOCK_SIZE_MISMATCH",
        ),
        (
            volume(region(), parent=FileSpec(ID, 512, "/a")),
            "read_only_parent.block_size",
            "BLOCK_SIZE_MISMATCH",
        ),
        (
            volume(region(), parent=volume(VolumeSpec(ID, 512, (), FileSpec(ID, 512, "/a")))),
            "read_only_parent.sub_volumes[0].block_size",
            "BLOCK_SIZE_MISMATCH",
        ),
        (region(key=Secret("not base64!")), "opts.key", "KEY_INVALID"),
        (region(key=Secret("ümlaut")), "opts.key", "KEY_INVALID"),
        (region(key=Secret("")), "opts.key", "KEY_INVALID"),
        (region(key=Secret("c2hvcnQ=")), "opts.key", "KEY_INVALID"),
        (region(key=Secret(KEY.reveal().rstrip("="))), "opts.key", "KEY_INVALID"),
        (region(key=Secret(REDACTED)), "opts.key", "KEY_INVALID"),
        (region(cert_pem="/c", key_pem="/k"), "opts.root_cert_pem", "TLS_INCOMPLETE"),
        (region(cert_pem="/c", root_cert_pem="/r"), "opts.key_pem", "TLS_INCOMPLETE"),
        (
            region(cert_pem="-----BEGIN CERTIFICATE-----", key_pem="/k", root_cert_pem="/r"),
            "opts.cert_pem",
            "PEM_TEXT_GIVEN",
        ),
        (region(cert_pem="", key_pem="/k", root_cert_pem="/r"), "opts.cert_pem", "PATH_EMPTY"),
        (region(flush_timeout=0.0), "opts.flush_timeout", "FLUSH_TIMEOUT_INVALID"),
        (region(flush_timeout=-1.0), "opts.flush_timeout", "FLUSH_TIMEOUT_INVALID"),
        (replace(region(), generation=0), "gen", "GENERATION_ZERO"),
        (volume(), "sub_volumes", "VOLUME_EMPTY"),
        (volume(region(), volume()), "sub_volumes[1].sub_volumes", "VOLUME_EMPTY"),
        (FileSpec(ID, 4096, ""), "path", "PATH_EMPTY"),
        (UrlSpec(ID, 4096, "ftp://a/b"), "url", "URL_INVALID"),
        (UrlSpec(ID, 4096, "http://"), "url", "URL_INVALID"),
        (UrlSpec(ID, 4096, "http://[::"), "url", "URL_INVALID"),
        (UrlSpec(ID, 4096, "http://me:hush@a/b"), "url", "URL_CREDENTIALS"),
    ],
)
def test_each_rule(construction: Construction, field: str, reason: str) -> None:
    report = check(construction)
    assert not report.valid
    assert [(v.field, v.reason) for v in report.violations] == [(field, reason)]


def test_a_duplicate_names_the_first_use() -> None:
    violation = check(volume(region(), region(3))).violations[0]
    assert "127.0.0.1:3" in violation.description
    assert "sub_volumes[0].opts.target[2]" in violation.description


def test_all_problems_at_once() -> None:
    bad = RegionSpec(
        Geometry(100, 0, 0), RegionOptions(ID, ("a:1", "a:1"), key=Secret("?"), cert_pem="/c"), 0
    )
    assert problems(volume(bad, volume())) == {
        "sub_volumes[0].block_size": "BLOCK_SIZE_INVALID",
        "sub_volumes[0].blocks_per_extent": "EXTENT_SIZE_INVALID",
        "sub_volumes[0].extent_count": "EXTENT_COUNT_INVALID",
        "sub_volumes[0].gen": "GENERATION_ZERO",
        "sub_volumes[0].opts.target": "TARGET_COUNT",
        "sub_volumes[0].opts.target[1]": "DUPLICATE_TARGET",
        "sub_volumes[0].opts.key": "KEY_INVALID",
        "sub_volumes[0].opts.key_pem": "TLS_INCOMPLETE",
        "sub_volumes[0].opts.root_cert_pem": "TLS_INCOMPLETE",
        "sub_volumes[1].sub_volumes": "VOLUME_EMPTY",
    }


def test_summary_of_the_documents_disk() -> None:
    summary = check(volume(region())).summary
    assert summary.total_bytes == 8 << 30
    assert (summary.regions, summary.targets, summary.depth) == (1, 3, 2)
    assert not summary.encrypted
    assert summary.block_size == 4096


def test_summary_counts_parents_but_not_their_size() -> None:
    summary = check(volume(region(), region(4), parent=volume(region(7, key=KEY)))).summary
    assert summary.total_bytes == 16 << 30
    assert (summary.regions, summary.targets, summary.depth) == (3, 9, 3)
    assert summary.encrypted


def test_a_size_above_64_bits() -> None:
    huge = replace(region(), geometry=Geometry(32768, 1 << 62, 4))
    report = check(volume(huge))
    assert [v.reason for v in report.violations if v.field == "sub_volumes"] == ["SIZE_OVERFLOW"]
    assert report.summary.total_bytes is None


def test_depth_and_nodes_have_limits() -> None:
    deep: Construction = region()
    for _ in range(DEPTH_MAX + 500):
        deep = volume(parent=deep)
    path = ".".join(["read_only_parent"] * DEPTH_MAX)
    assert problems(deep) == {path: "TOO_DEEP"}
    wide = volume(*(region(first * 3 + 1) for first in range(NODES_MAX + 5)))
    assert problems(wide) == {f"sub_volumes[{NODES_MAX - 1}]": "TOO_MANY_NODES"}


def test_a_list_of_problems_is_bounded_and_the_rest_counted() -> None:
    report = check(volume(*[region()] * 1000))
    assert len(report.violations) == VIOLATIONS_MAX
    assert len(report.violations) + report.omitted == 999 * 3


def test_paths_and_urls_have_a_length() -> None:
    assert check(FileSpec(ID, 4096, "/" + "ä" * 2047)).valid
    assert problems(FileSpec(ID, 4096, "/" + "ä" * 2048)) == {"path": "PATH_INVALID"}
    url = "http://images/"
    assert check(UrlSpec(ID, 4096, url + "a" * (4096 - len(url)))).valid
    assert problems(UrlSpec(ID, 4096, url + "a" * 4096)) == {"url": "URL_INVALID"}


def test_what_could_not_be_read_is_not_judged() -> None:
    draft = volume(replace(region(), generation=0), region(4, targets=("a:1", "a:1")))
    unread = frozenset({"sub_volumes[0].gen", "sub_volumes[1].opts.target[1]"})
    report = check(draft, unread=unread)
    assert [v.field for v in report.violations] == ["sub_volumes[1].opts.target"]
    assert check(draft, unread=unread | {"sub_volumes[1]"}).violations == ()


def test_no_secret_is_in_a_report() -> None:
    pem = "-----BEGIN PRIVATE KEY-----hush"
    report = check(region(key=Secret("hush!"), cert_pem=pem, key_pem=pem))
    assert len(report.violations) == 4
    assert "hush" not in repr(report)
    assert "hush" not in repr(check(UrlSpec(ID, 4096, "http://me:hush@a")))
