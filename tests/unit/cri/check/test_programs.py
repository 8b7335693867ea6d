import struct
from pathlib import Path

import pytest

from cri.check.finding import Level
from cri.check.programs import is_static, package_version, programs
from sandbox.host.errors import DeadlineExceeded
from sandbox.host.processes import Finished
from sandbox.settings import RuntimeHandler, SandboxSettings


class Programs:
    """A process runner that knows a few programs by name."""

    def __init__(self, **outputs):
        self.outputs = outputs
        self.runs = []

    async def run(self, argv, **_):
        self.runs.append(list(argv))
        output = self.outputs.get(Path(argv[0]).name, "")
        if isinstance(output, Exception):
            raise output
        status, text = output if isinstance(output, tuple) else (0, output)
        return Finished(tuple(argv), status, text.encode(), b"", 1)


def elf(*kinds, wide=True, order="<"):
    """An ELF header with program headers of these kinds."""
    head = bytearray(64)
    head[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2])
    size = 56 if wide else 32
    if wide:
        struct.pack_into(order + "Q", head, 32, 64)
        struct.pack_into(order + "HH", head, 54, size, len(kinds))
    else:
        struct.pack_into(order + "I", head, 28, 64)
        struct.pack_into(order + "HH", head, 42, size, len(kinds))
    body = b"".join(struct.pack(order + "I", kind).ljust(size, b"\0") for kind in kinds)
    return bytes(head) + body


def program(directory, name, content=b""):
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def node(tmp_path):
    """Settings with every program in place."""
    handlers = tuple(
        RuntimeHandler(name=name, path=program(tmp_path, name), root=tmp_path)
        for name in ("crun", "runc")
    )
    settings = SandboxSettings(handlers=handlers, conmon_path=program(tmp_path, "conmon"))
    return settings, program(tmp_path, "catatonit", elf(1, 6))


async def by_name(node, runner):
    settings, pause = node
    return {f.name: f for f in await programs(settings, pause, runner)}


async def test_versions_of_programs_and_of_their_packages(node):
    versions = {
        "crun": "crun version 1.8.1\ncommit: f8a096be\n",
        "conmon": "conmon version 2.1.6\n",
        "dpkg-query": "crun: /usr/bin/crun",
    }
    findings = await by_name(node, Programs(**versions))
    crun = findings["runtime crun (default)"]
    assert crun.level is Level.OK
    assert crun.detail.startswith(f"{node[0].handlers[0].path} 1.8.1 (package ")
    assert findings["runtime runc"].detail.partition(" (")[0].endswith("runc version unknown")
    assert findings["pause"].level is Level.OK


async def test_a_missing_default_runtime_is_worse_than_another(node):
    for handler in node[0].handlers:
        handler.path.unlink()
    findings = await by_name(node, Programs())
    assert findings["runtime crun (default)"].level is Level.ERROR
    assert findings["runtime runc"].level is Level.WARNING
    assert findings["runtime runc"].remedy == "install runc, or set runtimes.runc.path"


async def test_what_may_not_be_run_is_no_program(node):
    node[0].conmon_path.chmod(0o644)
    assert (await by_name(node, Programs()))["monitor"].level is Level.ERROR


@pytest.mark.parametrize("output", [(127, ""), DeadlineExceeded("took too long")])
async def test_programs_that_fail(node, output):
    assert (await by_name(node, Programs(conmon=output)))["monitor"].level is Level.ERROR


async def test_a_pause_program_that_needs_libraries(node):
    node[1].write_bytes(elf(1, 3, 6))
    finding = (await by_name(node, Programs()))["pause"]
    assert finding.level is Level.ERROR
    assert "statically linked" in finding.remedy


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_interpreter_among_the_program_headers(tmp_path, wide, order):
    assert is_static(program(tmp_path, "a", elf(1, 2, 6, wide=wide, order=order)))
    assert not is_static(program(tmp_path, "b", elf(6, 3, wide=wide, order=order)))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF"])
def test_scripts_and_stubs_are_not_static_programs(tmp_path, content):
    assert not is_static(program(tmp_path, "a", content))


async def test_no_package_without_dpkg(tmp_path):
    path = program(tmp_path, "x")
    assert await package_version(path, Programs(**{"dpkg-query": (1, "")})) == ""
    assert await package_version(path, Programs(**{"dpkg-query": DeadlineExceeded("x")})) == ""
