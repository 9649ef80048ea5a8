"""What is shown of a configuration: everything but secrets, and nothing of what is not known."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.settings import (
    MASK,
    SecretText,
    SecretUrl,
    Setting,
    Source,
    flattened,
    setting,
    shown,
)

PASSWORD = "hunter2"


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), ("", ""), ("x y", "x y"), (True, "true"), (False, "false"), (0, "0"),
        (12, "12"), (2.5, "2.5"), (30.0, "30"), (Path("/var/lib"), "/var/lib"),
        (Colour.RED, "red"), ((), ""), (["a", 1], "a, 1"), ("unix:/run/x", "unix:/run/x"),
        ("http://host:4317", "http://host:4317"), ("nbd://[::1]:10809/a?b=c", "nbd://[::1]:10809/a?b=c"),
        (SecretText(""), ""), (SecretUrl(""), ""), (SecretUrl("postgresql://me@db/s"), "postgresql://me@db/s"),
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown_as_it_is(value: object, text: str) -> None:
    assert shown(value) == (text, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (SecretText(PASSWORD), MASK),
        (SecretUrl(f"postgresql://me:{PASSWORD}@db:5432/s"), f"postgresql://me:{MASK}@db:5432/s"),
        (SecretUrl(f"postgresql://me:{PASSWORD}@@db/s"), f"postgresql://me:{MASK}@db/s"),
        (f"http://me:{PASSWORD}@collector/", f"http://me:{MASK}@collector/"),
        (SecretUrl(f"postgresql://db/s?sslmode=require&password={PASSWORD}"),
         f"postgresql://db/s?sslmode=require&password={MASK}"),
        (f"https://h/p?sig={PASSWORD}&x=1", f"https://h/p?sig={MASK}&x=1"),
        (SecretUrl(PASSWORD), MASK),
        (SecretUrl(f"postgresql://me:{PASSWORD}@[db/s"), MASK),
        (SecretUrl(f"postgresql://me:{PASSWORD}@db:port/s"), MASK),
        ([SecretText(PASSWORD), "x"], f"{MASK}, x"),
        (object(), MASK),
        ({"password": PASSWORD}, MASK),
        (PASSWORD.encode(), MASK),
    ],
)  # fmt: skip
def test_what_is_secret_is_not(value: object, text: str) -> None:
    assert shown(value) == (text, True)
    assert setting("s", value, Source.FLAG, "--s") == Setting("s", text, Source.FLAG, "--s", True)


@given(st.text(alphabet="Q1:@/?#[]%&= \\", min_size=1, max_size=12), st.booleans())
def test_no_password_gets_through_whatever_is_in_it(password: str, typed: bool) -> None:
    url = f"postgresql://me:{password}@db/s"
    text, masked = shown(SecretUrl(url) if typed else url)
    assert masked
    assert text in (MASK, f"postgresql://me:{MASK}@db/s")


def test_secrets_are_in_no_representation() -> None:
    config = {"a": SecretText(PASSWORD), "b": SecretUrl(f"postgresql://me:{PASSWORD}@db/s")}
    assert PASSWORD not in repr(config)
    # And yet they are what they are.
    assert config["a"] == PASSWORD


def test_a_default_has_no_origin() -> None:
    assert setting("level", "info", Source.DEFAULT, "somewhere").origin == ""


def test_tables_in_tables_become_paths() -> None:
    table = {"a": {"b": 1, "c": ["x", "y"]}, "d": [{"e": 2}, {"e": 3}], "f": []}
    assert flattened(table) == [
        ("a.b", 1), ("a.c", ["x", "y"]), ("d[0].e", 2), ("d[1].e", 3), ("f", []),
    ]  # fmt: skip
