"""What a service manager does to the daemon and hears of it: ready, reload, watchdog, stop."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node

SETTINGS = {"daemon.stop_grace_s": "5"}
SLEEP = ["sleep", "1000"]


@pytest.fixture(params=["path", "abstract"])
def told(
    request: pytest.FixtureRequest, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Everything that a daemon which is started from now on tells its manager, in order."""
    abstract = f"\0podwright-test-{secrets.token_hex(8)}"
    name = abstract if request.param == "abstract" else str(tmp_path / "notify")
    node.stop()
    messages: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)

        def read() -> None:
            while data := sock.recv(1000):
                messages.append(data.decode())

        thread = threading.Thread(target=read)
        thread.start()
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        try:
            yield messages
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", name)
            thread.join()
            if node.process is not None:
                node.stop()


def reload_report(node: Node) -> dict:
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return json.loads(answer.info["reload"])


def test_a_whole_life_as_the_manager_hears_it(node: Node, told: list[str]) -> None:
    node.start_daemon()
    until(lambda: told.count("WATCHDOG=1") >= 3, "it is fed")
    assert told[0] == "READY=1"
    os.kill(node.pid, signal.SIGHUP)
    until(lambda: told.count("READY=1") == 2, "it is ready again")
    assert any(text.startswith("RELOADING=1\nMONOTONIC_USEC=") for text in told)
    node.stop()
    until(lambda: told[-1] == "STOPPING=1", "its last word is heard")


def test_a_daemon_that_does_not_answer_is_not_called_alive(node: Node, told: list[str]) -> None:
    """Its socket leads to nobody: the process is well, and of no use."""
    node.start_daemon()
    until(lambda: told.count("WATCHDOG=1") >= 2, "it is fed")
    node.socket.unlink()
    until(lambda: "does not answer itself" in node.log_tail(), "it notices")
    fed = told.count("WATCHDOG=1")
    time.sleep(0.5)  # not a wait for something: nothing may come in five of its periods
    assert told.count("WATCHDOG=1") <= fed + 1


def test_reload(node: Node) -> None:
    usual = node.config.read_text()
    node.pull(BUSYBOX)
    image = node.image_id(BUSYBOX)

    def pinned() -> bool:
        images = node.images.ListImages(api.ListImagesRequest(), timeout=PATIENCE_S).images
        return next(found.pinned for found in images if found.id == image)

    def reload(text: str) -> dict:
        before = reload_report(node)
        node.config.write_text(text)
        lines = node.log.read_text().count("configuration")
        os.kill(node.pid, signal.SIGHUP)
        until(lambda: node.log.read_text().count("configuration") > lines, "it was read")
        until(lambda: reload_report(node)["outcome"] or before["outcome"], "it is reported")
        return reload_report(node)

    try:
        assert not pinned()
        text = usual.replace("[image]", f'[image]\npinned_images = ["{BUSYBOX}"]')
        assert reload(text)["changed"] == ["image.pinned_images"]
        assert pinned()
        said = reload(text.replace("stop_grace_s = 5", "stop_grace_s = 6"))
        assert said["needsRestart"] == ["daemon.stop_grace_s"]
        bad = reload(usual.replace("stop_grace_s = 5", 'stop_grace_s = "soon"'))
        assert bad["outcome"] == "refused"
        assert any("stop_grace_s" in problem for problem in bad["problems"])
        assert pinned(), "the old configuration stays"
        assert reload(usual)["outcome"] == "ok"
        assert not pinned()
    finally:
        node.config.write_text(usual)


def test_a_call_in_flight_is_answered_before_the_end(node: Node) -> None:
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "sleep 1; echo done"])
    call = node.runtime.ExecSync.future(request, timeout=PATIENCE_S)
    until(lambda: node.processes_doing("sleep 1; echo done"), "it runs")
    node.stop()
    assert call.result().stdout == b"done\n"
    node.start_daemon()
    node.assert_true()


def test_the_grace_bounds_what_does_not_end(node: Node) -> None:
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    request = api.ExecSyncRequest(container_id=container, cmd=["sleep", "999"])
    call = node.runtime.ExecSync.future(request, timeout=PATIENCE_S)
    until(lambda: node.processes_doing("sleep 999"), "it runs")
    assert node.stop() == 0
    assert call.exception() is not None
    node.start_daemon()
    node.assert_true()
