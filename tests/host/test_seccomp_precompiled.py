"""The compiled filter is, byte for byte, what crun itself makes of the same rules."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sandbox import oci
from sandbox.host.libseccomp import compile_filter
from sandbox.precompile import ANNOTATION, to_filter, with_compiled_filter
from sandbox.spec.build import container_spec
from tests.host.runtime_node import RuntimeNode
from tests.kit.filters import default_filter, localhost_filter
from tests.kit.spec_inputs import container_inputs

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86_64"),
]

PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 0x20000, "op": "SCMP_CMP_EQ"},
            ],
        },
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                {
                    "index": 0,
                    "value": 0x7E020000,
                    "valueTwo": 0x7E020000,
                    "op": "SCMP_CMP_MASKED_EQ",
                }
            ],
        },
    ],
}


CASES = {
    "default": default_filter(),
    "default with CAP_SYS_ADMIN": default_filter("CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
    "localhost": localhost_filter(PROFILE),
}


@pytest.fixture
async def node(tmp_path: Path, cgroup_path: str) -> AsyncIterator[RuntimeNode]:
    made = RuntimeNode(tmp_path / "node", cgroup_path, "crun")
    yield made
    await made.clean()


def prepare(node: RuntimeNode, seccomp: oci.Seccomp, *args: str) -> tuple[str, Path]:
    cid, bundle = node.bundle(*args)
    document = json.loads((bundle / "config.json").read_bytes())
    document["linux"]["seccomp"] = json.loads(oci.encode(seccomp))
    (bundle / "config.json").write_text(json.dumps(document))
    return cid, bundle


@pytest.mark.parametrize("case", CASES)
async def test_the_bytes_are_those_that_crun_makes(node: RuntimeNode, case: str) -> None:
    cid, _ = prepare(node, CASES[case], "/bin/sleep", "1000")
    await node.conmon.create(node.request(cid))
    theirs = (node.handler.root / cid / "seccomp.bpf").read_bytes()
    assert compile_filter(to_filter(CASES[case])) == theirs


async def test_crun_uses_the_compiled_filter_and_not_the_rules(node: RuntimeNode) -> None:
    """With rules that forbid nothing beside it, only the annotation can be what refuses mkdir."""
    cid, bundle = prepare(node, CASES["localhost"], "/bin/mkdir", "/tmp/made")
    compiled = with_compiled_filter(spec_with(CASES["localhost"]))
    assert base64.b64decode(compiled.annotations[ANNOTATION])
    document = json.loads((bundle / "config.json").read_bytes())
    document["annotations"] = {ANNOTATION: compiled.annotations[ANNOTATION]}
    document["linux"]["seccomp"]["syscalls"] = []
    (bundle / "config.json").write_text(json.dumps(document))
    created = await node.conmon.create(node.request(cid))
    await node.runtime.start(cid)
    watch_file = node.exits_dir / cid
    while not watch_file.exists():
        await node.clock.sleep(0.01)
    assert watch_file.read_text() == "1"
    assert b"Operation not supported" in node.log(cid)
    assert created.pid > 1


def spec_with(seccomp: oci.Seccomp) -> oci.Spec:
    spec = container_spec(container_inputs())
    return msgspec.structs.replace(spec, linux=msgspec.structs.replace(spec.linux, seccomp=seccomp))


def test_a_filter_with_a_listener_is_left_to_the_runtime() -> None:
    plain = default_filter()
    spec = spec_with(msgspec.structs.replace(plain, listener_path="/run/agent.sock"))
    assert with_compiled_filter(spec) is spec
