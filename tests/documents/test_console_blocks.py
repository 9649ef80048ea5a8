"""The comparison of what is shown with what is printed can fail, and holds where it should."""

from __future__ import annotations

import pytest

from tests.documents.console_blocks import Play, steps

ONE, OTHER = "5b893858-ae4d-4c29-bd31-bcecdb0becfb", "8884e8c1-8182-41ff-960d-05d83dd3ace1"
TEXT = """Text with `$ no command`.

```sh
$ neither is this
```

```console
$ first \\
> and more
shown
...
$ second
```
"""


def play() -> Play:
    return Play({"127.0.0.1:8810": "127.0.0.1:14050"}, {"/srv": "/tmp/x1"})


def test_commands_and_what_they_print_are_found() -> None:
    found = [(each.line, each.end, each.command, each.expected) for each in steps(TEXT)]
    assert found == [(8, 12, "first \\\nand more", ("shown", "...")), (12, 13, "second", ())]


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        (("a", "...", "d"), "a\nb\nc\nd\n"),
        (("...", "c", "..."), "a\nb\nc\nd\n"),
        (('"n": 12345,', "1.5s 2026-11-26T11:57:34.5Z"), '"n":  98765,\n20s 2027-01-01T00:00:00Z'),
        (("record 26.3 ms 2.1 s ███",), "record 1.2 s 264 µs █\n"),
        (("at 127.0.0.1:8810 in /srv/a",), "at 127.0.0.1:14050 in /tmp/x1/a"),
        ((ONE, ONE.replace("-", "")), f"{OTHER}\n{OTHER.replace('-', '')}"),
    ],
)
def test_what_has_the_shape_passes(expected: tuple[str, ...], output: str) -> None:
    assert play().difference(expected, output) == ""


@pytest.mark.parametrize(
    ("expected", "output", "word"),
    [
        (("a", "b"), "a\n", "never printed: b"),
        (("a",), "a\nb\n", "not shown: b"),
        (("...", "e"), "a\nb\n", "never printed: e"),
        (("state 12",), "state 13", "printed: state 13"),
        (("127.0.0.1:8810",), "127.0.0.1:8810x", "printed"),
        (("127.0.0.1:8820",), "127.0.0.1:14050", "printed: 127.0.0.1:8810"),
        ((f"{ONE} {ONE}",), f"{ONE} {OTHER}", "printed"),
    ],
)
def test_what_differs_is_said(expected: tuple[str, ...], output: str, word: str) -> None:
    assert word in play().difference(expected, output)


def test_a_name_stands_for_the_same_everywhere() -> None:
    one = play()
    assert one.difference((f"id {ONE}",), f"id {OTHER}") == ""
    assert one.real(f"get {ONE} {ONE.replace('-', '')}") == f"get {OTHER} {OTHER.replace('-', '')}"
    assert one.difference((f"id {ONE}",), f"id {ONE}") != ""
