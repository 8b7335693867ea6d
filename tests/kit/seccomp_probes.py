"""Programs that do one system call, in a directory for containers, and what each ended with."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from protos import api_pb2 as api
from tests.kit.node import Node

#: `echo NAME STATUS` for every program there is.
SCRIPT = 'for p in /probes/*; do $p; echo "${p##*/} $?"; done'


def write(directory: Path, programs: Mapping[str, bytes]) -> api.Mount:
    """Write the programs; the mount that brings them into a container."""
    directory.mkdir(exist_ok=True)
    for name, program in programs.items():
        (directory / name).write_bytes(program)
        (directory / name).chmod(0o755)
    return api.Mount(container_path="/probes", host_path=str(directory), readonly=True)


def told_by(node: Node, container: str) -> dict[str, str]:
    """Each program's errno by name ("0" for success), once all have run as a command."""
    code, out, words = node.exec(container, "sh", "-c", SCRIPT)
    assert code == 0, words
    pairs = (line.split() for line in out.splitlines())
    return {name: errno.errorcode.get(int(number), number) for name, number in pairs}
