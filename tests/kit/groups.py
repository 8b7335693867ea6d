"""Control groups of a node's pods, as a kubelet would make and remove them with either driver.

`PODWRIGHT_TEST_DRIVER` says which: `cgroupfs` (the default), or `systemd` where that is process 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Final

DRIVER: Final = os.environ.get("PODWRIGHT_TEST_DRIVER", "cgroupfs")


def top(tag: str) -> str:
    """The group above all pods of the node with that tag."""
    # In the name of a slice every "-" is a level.
    return f"/{tag.replace('-', '_')}.slice" if DRIVER == "systemd" else f"/{tag}"


def parent(tag: str, pod: str) -> str:
    """What a pod's request says for `cgroup_parent`; also its path in every hierarchy."""
    if DRIVER != "systemd":
        return f"{top(tag)}/pod-{pod}"
    name = re.sub(r"[^A-Za-z0-9.]", "_", pod)
    return f"{top(tag)}/{tag.replace('-', '_')}-pod_{name}.slice"


def container(tag: str, pod: str, container_id: str) -> str:
    """Path of a container's group in every hierarchy."""
    below = f"podwright-{container_id}.scope" if DRIVER == "systemd" else container_id
    return f"{parent(tag, pod)}/{below}"


def remove_pods(tag: str) -> None:
    """Remove the empty groups of pods, which are their client's."""
    if DRIVER == "systemd":
        _stop(f"{tag.replace('-', '_')}-pod_*.slice")
        return
    for hierarchy in hierarchies():
        for directory in hierarchy.glob(f"{tag}/pod-*"):
            with contextlib.suppress(OSError):
                directory.rmdir()


def remove_all(tag: str) -> None:
    """Remove whatever is there of the node."""
    if DRIVER == "systemd":
        remove_pods(tag)
        _stop(top(tag).removeprefix("/"))
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(f"{hierarchy}{top(tag)}", topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def remove_group(group: Path) -> None:
    """Remove a group of a test's own; what is left in it goes to the group above.

    A process that ends just now can neither be moved nor is it gone yet.
    """
    deadline_s = time.monotonic() + 60.0
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return


def hierarchies() -> list[Path]:
    """Where control groups are mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")]


def _stop(pattern: str) -> None:
    subprocess.run(["systemctl", "stop", pattern], check=True, capture_output=True)
