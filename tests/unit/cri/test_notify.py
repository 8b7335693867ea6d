"""What systemd is told, through real datagram sockets, and when the watchdog is fed."""

from __future__ import annotations

import asyncio
import secrets
import socket

import pytest

from cri import notify as module
from cri.notify import answers, feed, notify, watchdog_interval_s
from tests.fakes.clock import FakeClock


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """systemd's end of the socket, as a file and in the abstract name space."""
    name = f"\0podwright-{secrets.token_hex(8)}" if request.param == "abstract" else tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(name))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(name).replace("\0", "@"))
        yield sock


def test_the_state_arrives_as_it_is(manager):
    notify("READY=1")
    notify("RELOADING=1\nMONOTONIC_USEC=17")
    assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"RELOADING=1\nMONOTONIC_USEC=17"


def test_nobody_listens_and_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
    ],
)
def test_the_watchdog_is_meant_for_us_or_not(environment, interval_s):
    assert watchdog_interval_s(environment, 7) == interval_s


async def test_it_is_fed_only_while_the_daemon_answers(manager):
    clock = FakeClock()
    looks = iter([True, False, True])

    async def alive() -> bool:
        try:
            return next(looks)
        except StopIteration:
            raise asyncio.CancelledError from None

    with pytest.raises(asyncio.CancelledError):
        await feed(alive, 30.0, clock)
    # After a late answer it is asked again soon: the limit is two intervals.
    assert clock.slept_s == [30.0, 1.0, 30.0]
    assert [manager.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_without_a_watchdog_nobody_is_asked():
    async def never() -> bool:
        raise AssertionError

    await feed(never, 0.0, FakeClock())


async def test_nobody_behind_the_socket_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    assert not await answers(tmp_path / "nothing.sock")
