"""Log rotation as the kubelet does it, while a container prints as fast as containers do."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node

#: Above 10,000 lines in a second: bursts of 2,000 with less than a tenth of a second for each.
BURST: Final = 2_000
LINES_PER_S: Final = 10_000
ROTATIONS: Final = 8
CHATTER: Final = (
    f"n=1; while [ ! -e /tmp/end ]; do seq $n $((n+{BURST - 1})); n=$((n+{BURST})); sleep 0.05;"
    " done; echo over"
)
LINE: Final = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) (?:stdout|stderr) ([PF]) (.*)"
)


def reopen(node: Node, container: str) -> None:
    request = api.ReopenContainerLogRequest(container_id=container)
    node.runtime.ReopenContainerLog(request, timeout=PATIENCE_S)


def lines_per_s(*logs: Path) -> float:
    """How fast was written, by the monitor's own times of the first and the last line."""
    lines = [line for log in logs for line in log.read_bytes().splitlines()]
    first, last = (
        datetime.fromisoformat(line.split()[0].decode()) for line in (lines[0], lines[-1])
    )
    return len(lines) / (last - first).total_seconds()


def text_of(log: Path) -> bytes:
    """What was said so far, of whole lines of the log."""
    *lines, _part = log.read_bytes().split(b"\n")
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    return b"".join(match[2] + (b"\n" if match[1] == b"F" else b"") for match in found)


def messages(*logs: Path) -> list[bytes]:
    """What was said; every line must be a line of the CRI's format.

    The monitor reads in pieces: a part of a line is written as a part (P), the rest follows, maybe
    in the next file.
    """
    said = [b""]
    for log in logs:
        content = log.read_bytes()
        assert content.endswith(b"\n") or not content, f"{log.name} ends within a line"
        for line in content.splitlines():
            match = LINE.fullmatch(line)
            assert match, f"{log.name} has a line that is none: {line!r}"
            said[-1] += match[2]
            if match[1] == b"F":
                said.append(b"")
    assert said.pop() == b"", "the last line has no end"
    return said


def rotate(node: Node, container: str, log: Path, number: int) -> Path:
    """Rename and reopen, once something was written; the old file's new name."""
    until(lambda: log.exists() and log.stat().st_size > 0, f"{log.name} grows")
    old = log.with_name(f"{log.name}.{number:03}")
    log.rename(old)
    reopen(node, container)
    assert log.exists(), "the new file is there when the answer is"
    return old


def failure(node: Node, container: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        reopen(node, container)
    return refused.value.code()


@pytest.mark.cell("LG1")
def test_no_line_is_lost_or_doubled(
    node: Node, handler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sh", "-c", CHATTER])
    log = node.logs / "pod" / "main_0.log"
    files = [rotate(node, container, log, number) for number in range(ROTATIONS)]

    def fast_enough() -> float | None:
        # A busy machine may take some more rotations until it lets the container write that fast.
        files.append(rotate(node, container, log, len(files)))
        rate = lines_per_s(*files[-ROTATIONS:])
        return rate if rate >= LINES_PER_S else None

    rate = until(fast_enough, f"{LINES_PER_S} lines are written in a second")
    with capsys.disabled():
        print(f"\n{rate:.0f} lines/s over the last {ROTATIONS} of {len(files)} rotations")
    # The old file is finished with once the call has returned.
    sizes = [file.stat().st_size for file in files]
    until(lambda: log.stat().st_size > 100_000, "it goes on")
    assert [file.stat().st_size for file in files] == sizes
    node.exec(container, "touch", "/tmp/end")
    assert node.wait_exited(container).exit_code == 0
    said = messages(*files, log)
    assert said.pop() == b"over"
    assert len(said) >= ROTATIONS * BURST / 4
    assert said == [b"%d" % number for number in range(1, len(said) + 1)]


@pytest.mark.cell("LG3")
def test_rotation_while_the_container_is_stopping(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    script = f"trap 'echo asked' TERM; {CHATTER}"
    container = node.run(pod, "main", ["sh", "-c", script])
    log = node.logs / "pod" / "main_0.log"
    until(lambda: log.exists() and log.stat().st_size > 0, "it writes")
    request = api.StopContainerRequest(container_id=container, timeout=60)
    stopping = node.runtime.StopContainer.future(request, timeout=PATIENCE_S)
    # A monitor that reads late may write the word in parts (P).
    until(lambda: b"\nasked\n" in text_of(log), "it has been asked to stop")
    files = [rotate(node, container, log, number) for number in range(3)]
    assert not stopping.done(), "it is still within its grace period"
    node.exec(container, "touch", "/tmp/end")
    stopping.result()
    said = [word for word in messages(*files, log) if word != b"asked"]
    assert said.pop() == b"over"
    assert said == [b"%d" % number for number in range(1, len(said) + 1)]


@pytest.mark.cell("LG3")
def test_stopped_container_gets_no_file(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["echo", "done"])
    node.wait_exited(container)
    log = node.logs / "pod" / "main_0.log"
    assert messages(log) == [b"done"]
    log.rename(log.with_suffix(".log.1"))
    assert failure(node, container) is grpc.StatusCode.FAILED_PRECONDITION
    assert not log.exists()


@pytest.mark.cell("LG2")
def test_directory_that_is_gone_is_an_error_and_is_not_made(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sh", "-c", CHATTER])
    directory = node.logs / "pod"
    kept = directory.with_name("kept")
    until((directory / "main_0.log").exists, "it writes")
    directory.rename(kept)
    assert failure(node, container) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert not directory.exists()
    # It goes on into the file it has, and the next rotation is as if nothing had been.
    size = (kept / "main_0.log").stat().st_size
    until(lambda: (kept / "main_0.log").stat().st_size > size, "it goes on writing")
    kept.rename(directory)
    old = rotate(node, container, directory / "main_0.log", 0)
    node.exec(container, "touch", "/tmp/end")
    node.wait_exited(container)
    said = messages(old, directory / "main_0.log")
    assert said.pop() == b"over"
    assert said == [b"%d" % number for number in range(1, len(said) + 1)]
    shutil.rmtree(directory)
