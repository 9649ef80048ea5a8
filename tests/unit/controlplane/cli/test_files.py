"""The files a user passes: what is taken, and what is said about the rest."""

import json
from pathlib import Path

import pytest

from controlplane.cli import files
from controlplane.cli.failure import CommandError, describe

ROOT = Path(__file__).resolve().parents[4]
DISKS = ROOT / "examples" / "crucible-disks.json"
REPLACE = ROOT / "examples" / "replace.json"
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"


def refused(read, path) -> str:
    with pytest.raises(CommandError) as caught:
        read(str(path))
    return describe(caught.value, "cp")


def read_message(path: str):
    return files.open_vcr(path).message()


def written(tmp_path, data) -> Path:
    path = tmp_path / "file.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data, indent=1))
    return path


def test_the_documents_disks():
    disks, document = files.read_disks(str(DISKS))
    assert [(disk.name, disk.device, disk.slot, disk.read_only) for disk in disks] == [
        ("block2", "nvme", 3, False)
    ]
    vcr = disks[0].volume_construction_request
    assert vcr.id == VOLUME
    assert not vcr.HasField("read_only_parent")
    assert vcr.sub_volumes[0].opts.target[2] == "127.0.0.1:8830"
    assert not vcr.sub_volumes[0].opts.HasField("key")
    where = document.locate("disks[0].volume_construction_request.sub_volumes[0].gen")
    assert where == "crucible-disks.json:18"


def test_the_documents_replacement():
    request, document = files.read_replacement(str(REPLACE))
    assert request.name == "block2"
    assert request.vcr.sub_volumes[0].gen == 2
    assert document.locate("sub_volumes[0].opts.target[2]") == "replace.json:27"


def test_a_construction_request_as_text(tmp_path):
    path = written(tmp_path, {"name": "block2", "vcr_json": "{}"})
    request, _ = files.read_replacement(str(path))
    assert request.vcr_json == "{}"
    assert not request.HasField("vcr")


@pytest.mark.parametrize("wrap", ["alone", "disks", "replacement"])
def test_a_construction_request_in_any_of_its_files(tmp_path, wrap):
    vcr = json.loads(REPLACE.read_text())["vcr"]
    path = {
        "alone": written(tmp_path, vcr),
        "disks": DISKS,
        "replacement": REPLACE,
    }[wrap]
    found = files.open_vcr(str(path))
    assert found.message().id == VOLUME
    assert found.locate("sub_volumes[0].gen") is not None


def test_a_missing_file(tmp_path):
    text = refused(files.read_disks, tmp_path / "none.json")
    assert "none.json: No such file" in text


def test_broken_json_names_the_place(tmp_path):
    path = written(tmp_path, '{\n "name": "x",\n "vcr": {,}\n}')
    assert f"{path}:3:10: not JSON" in refused(files.read_replacement, path)


def test_unknown_keys_are_all_named_with_line_and_neighbour(tmp_path):
    data = json.loads(REPLACE.read_text())
    data["vcr"]["sub_volumes"][0]["extent_cont"] = 128
    data["vcr"]["sub_volumes"][0]["opts"]["targets"] = []
    path = written(tmp_path, data)
    text = refused(files.read_replacement, path)
    line = 1 + path.read_text().split('"extent_cont"')[0].count("\n")
    assert f"{path}:{line}: vcr.sub_volumes[0].extent_cont: unknown key" in text
    assert "did you mean 'extent_count'?" in text
    assert "vcr.sub_volumes[0].opts.targets: unknown key" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("slot", "three", "expected a whole number from 0 to 4294967295, found a string"),
        ("slot", -1, "found the number -1"),
        ("slot", 1.5, "found the number 1.5"),
        ("slot", True, "found true"),
        ("name", 7, "expected a string, found the number 7"),
        ("read_only", "no", "expected true or false, found a string"),
        ("volume_construction_request", [], "expected an object, found an array"),
    ],
)
def test_wrong_kinds_of_value(tmp_path, key, value, expected):
    data = json.loads(DISKS.read_text())
    data[0][key] = value
    text = refused(files.read_disks, written(tmp_path, data))
    assert f"[0].{key}: " in text
    assert expected in text


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path):
    data = json.loads(REPLACE.read_text())
    data["vcr"]["sub_volumes"][0]["opts"]["lossy"] = "bXkgc2VjcmV0IGtleQ=="
    text = refused(files.read_replacement, written(tmp_path, data))
    assert "lossy: expected true or false" in text
    assert "bXkg" not in text


def test_disks_must_be_an_array():
    text = refused(files.read_disks, REPLACE)
    assert f"{REPLACE}:1: (top): expected an array of disks, found an object" in text


def test_null_in_an_array_is_named(tmp_path):
    data = json.loads(REPLACE.read_text())
    data["vcr"]["sub_volumes"][0]["opts"]["target"][1] = None
    text = refused(files.read_replacement, written(tmp_path, data))
    assert "opts.target[1]: expected a string, found null" in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "x"}, "needs exactly one of 'vcr' and 'vcr_json'"),
        ({"name": "x", "vcr": {}, "vcr_json": "{}"}, "needs exactly one of"),
        ({"name": "x", "vcr": {}, "validate_only": True}, "belongs on the command line"),
        ([], "expected an object, found an array"),
    ],
)
def test_what_is_no_replacement(tmp_path, data, expected):
    assert expected in refused(files.read_replacement, written(tmp_path, data))


def test_a_key_given_twice_is_refused(tmp_path):
    path = written(tmp_path, '{"name": "a",\n"name": "b", "vcr": {}}')
    assert f"{path}:2: name: this key is given twice" in refused(files.read_replacement, path)


def test_bottomless_nesting_is_refused(tmp_path):
    deep = '{"name": "x", "vcr": ' + '{"read_only_parent": ' * 200 + "{}" + "}" * 201
    assert "nested deeper than" in refused(files.read_replacement, written(tmp_path, deep))
    deeper = "[" * 100_000
    assert "nested too deep" in refused(files.read_disks, written(tmp_path, deeper))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"name": "\xff"}')
    assert "not UTF-8 text" in refused(files.read_replacement, path)


def test_what_may_be_null_is_taken_when_it_is_not(tmp_path):
    vcr = json.loads(REPLACE.read_text())["vcr"]
    options = vcr["sub_volumes"][0]["opts"]
    options |= {"key": "a2V5", "flush_timeout": 2.5, "cert_pem": "/c", "control": "127.0.0.1:1"}
    message = files.open_vcr(str(written(tmp_path, vcr))).message()
    assert message.sub_volumes[0].opts.key.value == "a2V5"
    assert message.sub_volumes[0].opts.flush_timeout.value == 2.5
    options["key"], options["flush_timeout"] = 7, "long"
    text = refused(read_message, written(tmp_path, vcr))
    assert "opts.key: expected a string, found the number 7" in text
    assert "opts.flush_timeout: expected a number, found a string" in text


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1" + "0" * 5000])
def test_numbers_that_json_does_not_have(tmp_path, number):
    path = written(tmp_path, f'{{"gen": {number}}}')
    assert f"{path}: not JSON: " in refused(read_message, path)


def test_a_request_in_its_file_knows_its_lines(tmp_path):
    vcr = json.loads(REPLACE.read_text())["vcr"]
    alone, wrapped = files.open_vcr(str(written(tmp_path, vcr))), files.open_vcr(str(REPLACE))
    assert (alone.where, wrapped.where) == ("", "vcr")
    assert wrapped.locate("sub_volumes[0].opts.target[2]") == "replace.json:27"
    assert wrapped.locate("sub_volumes[0].opts.target[7]") == wrapped.locate(
        "sub_volumes[0].opts.target"
    )
    assert alone.line("") == 1
    assert wrapped.line("") == 3
