"""`histfs info`: a YAML document with the keys that rdiff-backup has."""

import json
import sys

import pytest

from histfs import __version__
from tests.oracle import Oracle

yaml = pytest.importorskip("yaml")


def test_a_document(cli):
    ran = cli("-v5", "--parsable-output", "info")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("---\n")
    assert ran.out.endswith("...\n")
    told = yaml.safe_load(ran.out)
    assert told["exec"]["version"] == __version__
    assert told["exec"]["argv"] == ["histfs", "-v5", "--parsable-output", "info"]
    assert told["exec"]["parsed"]["verbosity"] == 5
    assert told["python"]["executable"] == sys.executable
    assert told["libraries"]["cffi"]


def test_the_keys(cli, rdiff_backup: Oracle):
    def keys(value):
        return {key: keys(below) for key, below in value.items()} if isinstance(value, dict) else None

    told = yaml.safe_load(cli("info").out)
    expected = yaml.safe_load(rdiff_backup.run(["--api-version", "201", "info"]).check())
    del told["libraries"]
    told["exec"]["parsed"] = expected["exec"]["parsed"] = None
    assert keys(told) == keys(expected)
    assert told["system"] == expected["system"]
    assert told["python"] | {"executable": None} == expected["python"] | {"executable": None}
    ours, theirs = told["exec"]["api_version"], expected["exec"]["api_version"]
    assert ours | {"default": 201} == theirs | {"default": 201}  # docs/rdiff-backup.md
    assert [*told["exec"]["argv"][1:]] == ["info"]
    assert expected["exec"]["argv"][1:] == ["--api-version", "201", "info"]


def test_json_alone(cli):
    ran = cli("info", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["exec"]["version"] == __version__
