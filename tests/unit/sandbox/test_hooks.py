"""OCI hooks of the node: reading their files, and for which containers they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.hooks import ContainerFacts, HookFiles, parse
from sandbox.host.errors import FailedPrecondition, InvalidArgument

SLEEP = ContainerFacts(command="/bin/sleep", annotations={}, has_bind_mounts=False)


def document(**changes):
    whole = {
        "version": "1.0.0",
        "hook": {"path": "/bin/true"},
        "when": {"always": True},
        "stages": ["poststop"],
        **changes,
    }
    return json.dumps(whole).encode()


def parsed(**changes):
    return parse(document(**changes), Path("x.json"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": "0.1.0"}, "not 1.0.0"),
        ({"hook": {"path": "true"}}, "absolute"),
        ({"hook": {"path": "/a", "timeout": 0}}, "timeout"),
        ({"hook": {"path": "/a", "env": ["A"]}}, "not NAME=value"),
        ({"hook": {"path": "/a", "shell": "x"}}, "shell"),
        ({"stages": []}, "stages must be of"),
        ({"stages": ["precreate"]}, "precreate"),
        ({"when": {}}, "no condition"),
        ({"when": {"never": True}}, "never"),
        ({"when": {"commands": ["("]}}, "not a regular expression"),
        ({"when": {"annotations": {"a": "*"}}}, "not a regular expression"),
        ({"cmds": []}, "cmds"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(changes, what):
    with pytest.raises(InvalidArgument) as caught:
        parsed(**changes)
    assert what in str(caught.value)


def facts(command="/bin/sleep", mounts=False, **annotations):
    return ContainerFacts(command=command, annotations=annotations, has_bind_mounts=mounts)


@pytest.mark.parametrize(
    ("when", "container", "fits"),
    [
        ({"always": True}, facts(), True),
        ({"always": False}, facts(), False),
        ({"commands": ["sleep$", "x"]}, facts(), True),
        ({"commands": ["^sleep"]}, facts(), False),
        ({"hasBindMounts": True}, facts(), False),
        ({"hasBindMounts": True}, facts(mounts=True), True),
        ({"hasBindMounts": False}, facts(), True),
        ({"hasBindMounts": False}, facts(mounts=True), False),
        ({"annotations": {"^a$": "x"}}, facts(a="axa"), True),
        ({"annotations": {"^a$": "x"}}, facts(a="y", b="x"), False),
        ({"annotations": {"a": "x", "b": "y"}}, facts(a="x"), False),
        ({"annotations": {"a": "x", "b": "y"}}, facts(a="x", b="y"), True),
        ({"always": True, "commands": ["no"]}, facts(), False),
    ],
)
def test_every_condition_must_hold(when, container, fits):
    assert parsed(when=when).fits(container) is fits


def test_order_by_name_and_a_later_directory_stands_in(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, name, argument in (
        (first, "b.json", "b1"),
        (first, "a.json", "a1"),
        (second, "b.json", "b2"),
        (second, "c.json", "c2"),
    ):
        directory.mkdir(exist_ok=True)
        hook = {"path": "/bin/true", "args": [argument]}
        stages = ["poststop", "poststart", "poststop"]
        (directory / name).write_bytes(document(hook=hook, stages=stages))
    found = HookFiles([first, second]).hooks_for(SLEEP)
    assert list(found) == ["poststop", "poststart"]
    for hooks in found.values():
        assert [hook.args for hook in hooks] == [("a1",), ("b2",), ("c2",)]
    assert HookFiles([]).hooks_for(SLEEP) == {}
    assert HookFiles([tmp_path / "none"]).hooks_for(SLEEP) == {}


def test_a_file_that_cannot_be_read_stops_containers_it_may_have_been_for(tmp_path):
    (tmp_path / "a.json").write_bytes(document(when={"commands": ["nothing-like-this"]}))
    files = HookFiles([tmp_path])
    assert files.hooks_for(SLEEP) == {}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"b\.json: not a hook"):
        files.hooks_for(SLEEP)


def test_the_program_must_be_there_and_roots_alone(tmp_path):
    program = tmp_path / "program"
    file = tmp_path / "a.json"
    files = HookFiles([tmp_path])

    def write(*stages):
        file.write_bytes(document(hook={"path": str(program)}, stages=list(stages)))

    write("poststop")
    with pytest.raises(FailedPrecondition, match=r"a\.json: .*program cannot be used"):
        files.hooks_for(SLEEP)
    program.write_text("#!/bin/sh\n")
    with pytest.raises(FailedPrecondition, match="is not executable"):
        files.hooks_for(SLEEP)
    program.chmod(0o757)
    with pytest.raises(FailedPrecondition, match="can be written by others"):
        files.hooks_for(SLEEP)
    program.chmod(0o755)
    assert files.hooks_for(SLEEP)
    # What runs inside the container is a program of its image.
    program.unlink()
    write("startContainer")
    assert files.hooks_for(SLEEP)
    write("startContainer", "poststop")
    with pytest.raises(FailedPrecondition):
        files.hooks_for(SLEEP)
