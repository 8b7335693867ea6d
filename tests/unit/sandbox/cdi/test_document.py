"""CDI files: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cdi.document import VERSIONS, DeviceNode, Mount, parse
from sandbox.host.errors import InvalidArgument

JSON, YAML = Path("a.json"), Path("a.yaml")


def document(**changes):
    edits = changes.pop("edits", {"env": ["A=b"]})
    whole = {
        "cdiVersion": "1.1.0",
        "kind": "vendor.com/gpu",
        "devices": [{"name": "g0", "containerEdits": edits}],
        **changes,
    }
    return json.dumps({k: v for k, v in whole.items() if v is not None}).encode()


def edits_of(data, path=JSON):
    return parse(data, path).devices[0].container_edits


def test_json_with_everything():
    edits = {
        "env": ["A=b=c", "B="],
        "deviceNodes": [
            {
                "path": "/dev/x",
                "hostPath": "/dev/y",
                "type": "c",
                "major": 195,
                "minor": 1,
                "fileMode": 432,
                "permissions": "rw",
                "uid": 1,
                "gid": 2,
            }
        ],
        "netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}],
        "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "bind"}],
        "hooks": [
            {"hookName": "poststop", "path": "/bin/x", "args": ["x"], "env": ["C=d"], "timeout": 3}
        ],
        "intelRdt": {"closID": "fast", "l3CacheSchema": "L3:0=f", "schemata": ["MB:0=10"]},
        "additionalGids": [44],
    }
    found = edits_of(document(edits=edits, annotations={"a": "b"}))
    assert found.device_nodes == (
        DeviceNode(
            path="/dev/x",
            host_path="/dev/y",
            type="c",
            major=195,
            minor=1,
            file_mode=0o660,
            permissions="rw",
            uid=1,
            gid=2,
        ),
    )
    assert found.mounts == (
        Mount(host_path="/a", container_path="/b", options=("ro",), type="bind"),
    )
    assert found.hooks[0].timeout == 3
    assert found.intel_rdt is not None
    assert found.intel_rdt.clos_id == "fast"
    assert found.additional_gids == (44,)
    assert found.net_devices[0].name == "net1"


def test_yaml_scalars_are_what_their_field_says():
    data = b"""
# comment
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
devices:
- name: 0
  containerEdits:
    env: [on=yes, "N=0x10"]
    deviceNodes:
    - {path: /dev/a, fileMode: 0660, major: 0x10, minor: 7}
    - {path: /dev/b, fileMode: 0o640, permissions: r}
"""
    whole = parse(data, YAML)
    assert whole.devices[0].name == "0"
    found = whole.devices[0].container_edits
    assert found.env == ("on=yes", "N=0x10")
    assert [(n.file_mode, n.major, n.minor) for n in found.device_nodes] == [
        (0o660, 16, 7),
        (0o640, 0, 0),
    ]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"a: &x [1]\nb: *x", "aliases"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"kind: a\nkind: b", "is there twice"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: !!python/object/apply:os.system [true]", "not YAML"),
        (b"a: b\n---\nc: d\n", "not YAML"),
        (b"", "expected `object`"),
        (b"{1: 2", "not YAML"),
    ],
)
def test_yaml_that_is_none_or_more_than_json(data, what):
    with pytest.raises(InvalidArgument, match=f"(?i){what}"):
        parse(data, YAML)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a CDI specification"),
        (b"[" * 100_000, "not a CDI specification"),
        (document(more=1), "unknown field `more`"),
        (document(edits={"envs": []}), "unknown field `envs`"),
        (document(devices=None), "`devices`"),
        (document(cdiVersion="2.0.0"), "'2.0.0' is not known"),
        (document(cdiVersion="0.2.0"), "'0.2.0' is not known"),
        (document(kind="gpu"), "kind is not VENDOR/CLASS"),
        (document(kind="v/a/b"), "kind is not VENDOR/CLASS"),
        (document(devices=[{"name": "a b", "containerEdits": {"env": ["A=b"]}}]), "'a b'"),
        (document(devices=[{"name": "a", "containerEdits": {"env": ["A=b"]}}] * 2), "twice"),
        (document(edits={}), "g0 changes nothing"),
        (document(edits={"env": ["A"]}), "not NAME=value: 'A'"),
        (document(edits={"env": ["=b"]}), "not NAME=value"),
        (document(edits={"deviceNodes": [{"path": "dev/x"}]}), "not an absolute path"),
        (document(edits={"deviceNodes": [{"path": "/x", "type": "x"}]}), "is not b, c, u or p"),
        (document(edits={"deviceNodes": [{"path": "/x", "permissions": "rwx"}]}), "'rwx'"),
        (document(edits={"deviceNodes": [{"path": "/x", "major": -1}]}), ">= 0"),
        (document(edits={"deviceNodes": [{"path": "/x", "uid": 2**32}]}), "<= 4294967294"),
        (document(edits={"mounts": [{"hostPath": "a", "containerPath": "/b"}]}), "absolute"),
        (document(edits={"mounts": [{"hostPath": "/a", "containerPath": "/"}]}), "root"),
        (document(edits={"mounts": [{"hostPath": "/a", "containerPath": "/.."}]}), "root"),
        (document(edits={"hooks": [{"hookName": "now", "path": "/a"}]}), "no such hook: 'now'"),
        (document(edits={"hooks": [{"hookName": "prestart", "path": "a"}]}), "absolute"),
        (document(edits={"hooks": [{"hookName": "prestart", "path": "/a", "timeout": 0}]}), "0"),
        (document(edits={"netDevices": [{"hostInterfaceName": "a/b", "name": "c"}]}), "'a/b'"),
        (document(edits={"netDevices": [{"hostInterfaceName": "a", "name": ""}]}), "interface"),
        (document(edits={"intelRdt": {"closID": "../x"}}), "closID"),
    ],
)
def test_what_is_wrong_is_said(data, what):
    with pytest.raises(InvalidArgument) as caught:
        parse(data, JSON)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "since"),
    [
        ({"edits": {"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "x"}]}}, "0.4.0"),
        ({"edits": {"deviceNodes": [{"path": "/a", "hostPath": "/b"}]}}, "0.5.0"),
        ({"devices": [{"name": "0", "containerEdits": {"env": ["A=b"]}}]}, "0.5.0"),
        ({"annotations": {"a": "b"}}, "0.6.0"),
        ({"kind": "vendor.com/a.b"}, "0.6.0"),
        ({"edits": {"additionalGids": [1]}}, "0.7.0"),
        ({"containerEdits": {"intelRdt": {"closID": "x"}}}, "0.7.0"),
        ({"edits": {"intelRdt": {"schemata": ["L3:0=f"]}}}, "1.1.0"),
        ({"edits": {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}}, "1.1.0"),
    ],
)
def test_a_feature_needs_its_version(changes, since):
    assert parse(document(**changes, cdiVersion=since), JSON)
    before = VERSIONS[VERSIONS.index(since) - 1]
    with pytest.raises(InvalidArgument, match=f"needs cdiVersion {since}, the file says {before}"):
        parse(document(**changes, cdiVersion=before), JSON)


@given(st.binary(max_size=300), st.sampled_from([JSON, YAML]))
def test_any_bytes_are_a_specification_or_an_error_of_ours(data, path):
    with suppress(InvalidArgument):
        parse(data, path)
