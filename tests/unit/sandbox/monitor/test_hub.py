"""The hub against a stand-in for conmon that speaks its packets on a real socket."""

import asyncio
import contextlib
import socket

import pytest

from sandbox.errors import MonitorGone
from sandbox.host.errors import ResourceExhausted
from sandbox.monitor import hub as hub_module
from sandbox.monitor.attach import Output, encode_packet
from sandbox.monitor.hub import SEAT_LIMIT_BYTES, AttachHubs


class Conmon:
    """Listens where conmon does."""

    def __init__(self, bundle):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(bundle / "attach"))
        self.listener.listen()
        self.listener.setblocking(False)

    async def accept(self):
        link, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        link.setblocking(False)
        return link

    @staticmethod
    async def writes(link, data, stream="stdout"):
        await asyncio.get_running_loop().sock_sendall(link, encode_packet(Output(stream, data)))

    @staticmethod
    async def reads(link):
        return await asyncio.get_running_loop().sock_recv(link, 64 * 1024)

    def close(self):
        self.listener.close()


@pytest.fixture
def bundle(tmp_path):
    return tmp_path


@pytest.fixture
def conmon(bundle):
    stand_in = Conmon(bundle)
    yield stand_in
    stand_in.close()


@contextlib.asynccontextmanager
async def hubs_running():
    try:
        async with asyncio.TaskGroup() as group:
            yield AttachHubs(group)
            raise _Done
    except* _Done:
        pass


class _Done(Exception):
    pass


async def test_everybody_sees_what_he_asked_for(bundle, conmon):
    async with hubs_running() as hubs:
        both = await hubs.attach(bundle, stdin_once=False, stdout=True, stderr=True)
        errors = await hubs.attach(bundle, stdin_once=False, stderr=True)
        link = await conmon.accept()
        await conmon.writes(link, b"out")
        await conmon.writes(link, b"err", "stderr")
        assert await both.stdout.read() == b"out"
        assert await both.stderr.read() == b"err"
        assert errors.stdout is None
        assert await errors.stderr.read() == b"err"
        with pytest.raises(BlockingIOError):
            conmon.listener.accept()
        link.close()
        await asyncio.gather(both.wait(), errors.wait())
        assert await both.stdout.read() == b""


async def test_what_was_written_before_the_end_is_read_after_it(bundle, conmon):
    async with hubs_running() as hubs:
        seat = await hubs.attach(bundle, stdin_once=False, stdout=True)
        link = await conmon.accept()
        await conmon.writes(link, b"last words")
        link.close()
        await seat.wait()
        assert await seat.stdout.read() == b"last words"
        assert await seat.stdout.read() == b""


async def test_input_of_several(bundle, conmon):
    async with hubs_running() as hubs:
        one = await hubs.attach(bundle, stdin_once=False, stdin=True)
        two = await hubs.attach(bundle, stdin_once=False, stdin=True)
        link = await conmon.accept()
        assert await one.stdin.write(b"1")
        assert await two.stdin.write(b"2")
        assert await conmon.reads(link) == b"1"
        assert await conmon.reads(link) == b"2"
        one.stdin.finish()
        one.close()
        assert not await one.stdin.write(b"late")
        assert await two.stdin.write(b"still open: the container's input outlives its clients")
        assert await conmon.reads(link)
        link.close()


@pytest.mark.parametrize(("stdin_once", "terminal"), [(False, False), (False, True), (True, True)])
async def test_one_that_finishes_its_input_detaches_after_the_answer(
    bundle, conmon, monkeypatch, stdin_once, terminal
):
    monkeypatch.setattr(hub_module, "DETACH_S", 12345.0)
    loop = asyncio.get_running_loop()
    call_later, detaching = loop.call_later, []

    def later(delay_s, call, *args, **options):
        """The time is over when the test says so."""
        if delay_s == hub_module.DETACH_S:
            return detaching.append(call)
        return call_later(delay_s, call, *args, **options)

    monkeypatch.setattr(loop, "call_later", later)
    async with hubs_running() as hubs:
        how = {"stdin_once": stdin_once, "terminal": terminal}
        onlooker = await hubs.attach(bundle, **how, stdout=True)
        seat = await hubs.attach(bundle, **how, stdin=True, stdout=True)
        link = await conmon.accept()
        await seat.stdin.write(b"last question")
        seat.stdin.finish()
        assert await conmon.reads(link) == b"last question"
        await conmon.writes(link, b"answer")
        assert await seat.stdout.read() == b"answer"
        [detach] = detaching
        detach()
        await seat.wait()
        assert await seat.stdout.read() == b""
        await onlooker.stdout.read()
        assert not onlooker.over.is_set()
        link.close()


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_the_first_that_leaves_ends_the_input_once_and_for_all(bundle, conmon, how):
    async with hubs_running() as hubs:
        one = await hubs.attach(bundle, stdin_once=True, stdin=True, stdout=True)
        two = await hubs.attach(bundle, stdin_once=True, stdin=True, stdout=True)
        link = await conmon.accept()
        await one.stdin.write(b"all")
        one.stdin.finish() if how == "finish" else one.close()
        assert await conmon.reads(link) == b"all"
        assert await conmon.reads(link) == b"", "conmon closes the container's input at this"
        assert not await two.stdin.write(b"too late")
        await conmon.writes(link, b"output goes on")
        assert await two.stdout.read() == b"output goes on"
        link.close()


async def test_an_onlooker_does_not_end_the_input(bundle, conmon):
    async with hubs_running() as hubs:
        onlooker = await hubs.attach(bundle, stdin_once=True, stdout=True)
        link = await conmon.accept()
        onlooker.close()
        seat = await hubs.attach(bundle, stdin_once=True, stdin=True, stdout=True)
        assert await seat.stdin.write(b"still possible")
        assert await conmon.reads(link) == b"still possible"
        with pytest.raises(BlockingIOError):
            conmon.listener.accept()
        link.close()


async def test_the_connection_goes_with_the_last_one(bundle, conmon):
    async with hubs_running() as hubs:
        one = await hubs.attach(bundle, stdin_once=False, stdout=True)
        two = await hubs.attach(bundle, stdin_once=False, stdout=True)
        link = await conmon.accept()
        one.close()
        one.close()
        two.close()
        assert await conmon.reads(link) == b""
        three = await hubs.attach(bundle, stdin_once=False, stdout=True)
        again = await conmon.accept()
        await conmon.writes(again, b"new")
        assert await three.stdout.read() == b"new"
        link.close()
        again.close()


async def test_one_that_does_not_read_is_put_out_and_the_others_lose_nothing(
    bundle, conmon, monkeypatch
):
    monkeypatch.setattr(hub_module, "STALL_S", 0.5)
    async with hubs_running() as hubs:
        stuck = await hubs.attach(bundle, stdin_once=False, stdout=True)
        good = await hubs.attach(bundle, stdin_once=False, stdout=True)
        link = await conmon.accept()
        total = 2 * SEAT_LIMIT_BYTES

        async def write():
            for _ in range(total // 8192):
                await conmon.writes(link, b"x" * 8192)
            link.close()

        async def read():
            size = 0
            while data := await good.stdout.read():
                size += len(data)
            return size

        _, size = await asyncio.gather(write(), read())
        assert size == total
        with pytest.raises(ResourceExhausted):
            await stuck.wait()
        await good.wait()


async def test_one_that_reads_slowly_makes_the_container_wait(bundle, conmon):
    async with hubs_running() as hubs:
        slow = await hubs.attach(bundle, stdin_once=False, stdout=True)
        link = await conmon.accept()
        total = 3 * SEAT_LIMIT_BYTES
        written = 0

        async def write():
            nonlocal written
            while written < total:
                await conmon.writes(link, b"x" * 8192)
                written += 8192
            link.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            size = 0
            while data := await slow.stdout.read():
                size += len(data)
                # What is under way: the seat's limit, a socket buffer, a piece or two.
                assert written - size < SEAT_LIMIT_BYTES + 1024 * 1024
        assert size == total


async def test_nobody_listens(bundle):
    async with hubs_running() as hubs:
        for _ in range(2):
            with pytest.raises(MonitorGone):
                await hubs.attach(bundle, stdin_once=False, stdout=True)
        assert hubs._hubs == {}


async def test_many_come_and_go(bundle, conmon):
    async with hubs_running() as hubs:
        keeper = await hubs.attach(bundle, stdin_once=False, stdout=True)
        link = await conmon.accept()
        for _ in range(1000):
            seat = await hubs.attach(bundle, stdin_once=False, stdin=True, stdout=True)
            seat.close()
        (hub,) = hubs._hubs.values()
        assert hub._seats == [keeper]
        link.close()
        await keeper.wait()
        while hubs._hubs:  # noqa: ASYNC110
            await asyncio.sleep(0)
