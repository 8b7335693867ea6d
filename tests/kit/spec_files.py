"""The OCI documents that a node has written: what the runtime was really told."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.node import Node


def document_of(node: Node, object_id: str) -> dict[str, object]:
    """The document of a container or of a pod's pause process, as JSON values."""
    for path in (
        node.run_root / "containers" / object_id / "config.json",
        node.run_root / "pods" / object_id / "bundle" / "config.json",
    ):
        if path.exists():
            return json.loads(path.read_text())
    raise AssertionError(f"no document of {object_id} in {node.run_root}")


def text_of(node: Node, object_id: str) -> str:
    """The same as text, to look for what must be nowhere in it."""
    return json.dumps(document_of(node, object_id))


def environment_of(pid: int) -> list[bytes]:
    """The entries that a process was started with (proc(5), /proc/PID/environ)."""
    return [entry for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry]
