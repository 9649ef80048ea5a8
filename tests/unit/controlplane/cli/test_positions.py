"""Where each value of a JSON text stands."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli import positions

ROOT = Path(__file__).resolve().parents[4]


def test_the_documents_file():
    lines = positions.scan((ROOT / "examples" / "replace.json").read_text()).lines
    assert lines["name"] == 2
    assert lines["vcr.sub_volumes[0].gen"] == 14
    assert lines["vcr.sub_volumes[0].opts.target[2]"] == 27


def test_brackets_and_commas_inside_strings_are_text():
    lines = positions.scan('{"a": "x,{[\\"",\n "b": [\n1]}').lines
    assert lines == {"": 1, "a": 1, "b": 2, "b[0]": 3}


def test_a_key_given_twice_is_noticed():
    found = positions.scan('{"a": 1, "b": {"a": 2},\n"a": 3}')
    assert found.duplicates == [("a", 2)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=20,
)


def paths(data, path=""):
    if isinstance(data, dict):
        for key, value in data.items():
            yield positions.join(path, key)
            yield from paths(value, positions.join(path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield f"{path}[{index}]"
            yield from paths(value, f"{path}[{index}]")


@given(JSON, st.sampled_from([None, 1]))
def test_every_path_is_found_and_no_other(data, indent):
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    lines = positions.scan(text).lines
    assert set(lines) == {"", *paths(data)}
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    order = [lines[path] for path in paths(data)]
    assert order == sorted(order)


LINES = {"": 1, "vcr": 2, "vcr.sub_volumes[0]": 3, "vcr.sub_volumes[0].gen": 4, "name": 9}


def test_a_daemons_field_is_found_whatever_wraps_it():
    assert positions.locate(LINES, "vcr.sub_volumes[0].gen") == 4
    assert positions.locate(LINES, "sub_volumes[0].gen") == 4
    assert positions.locate(LINES, "replacement.sub_volumes[0].gen") == 4
    assert positions.locate(LINES, "name") == 9


def test_a_missing_field_is_shown_at_its_parent():
    assert positions.locate(LINES, "sub_volumes[0].opts.target") == 3
    assert positions.locate(LINES, "nothing") is None


def test_disks_of_a_request_are_the_files_elements():
    lines = {"": 1, "[0]": 2, "[0].name": 3}
    assert positions.locate(lines, "disks[0].name") == 3
    assert positions.locate(lines, "disks[0].slot") == 2
