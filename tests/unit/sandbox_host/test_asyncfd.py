import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.asyncfd import DoubledReturns, FdReader, FdWriter, RelayedReader
from sandbox.host.files import Fd


@pytest.fixture
def pipe():
    reading, writing = map(Fd, os.pipe2(os.O_CLOEXEC))
    yield reading, writing
    reading.close()
    writing.close()


async def test_bytes_and_the_end(pipe):
    reading, writing = pipe
    reader, writer = FdReader(reading), FdWriter(writing)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(reader.read())
        await asyncio.sleep(0)
        assert not first.done()
        assert await writer.write(b"hello")
    assert first.result() == b"hello"
    writing.close()
    assert await reader.read() == b""


async def test_more_than_a_pipe_holds(pipe):
    reading, writing = pipe
    reader, writer = FdReader(reading), FdWriter(writing)
    content = os.urandom(1_000_000)
    received = bytearray()

    async def read():
        while data := await reader.read():
            received.extend(data)

    async def write():
        assert await writer.write(content)
        writing.close()

    await asyncio.gather(read(), write())
    assert received == content


async def test_nobody_reads_any_more(pipe):
    reading, writing = pipe
    writer = FdWriter(writing)
    async with asyncio.TaskGroup() as group:
        stuck = group.create_task(writer.write(b"x" * 1_000_000))
        await asyncio.sleep(0)
        reading.close()
    assert stuck.result() is False
    assert await writer.write(b"x") is False


async def test_a_pipe_that_somebody_else_holds_ends_after_a_while(pipe):
    reading, writing = pipe
    reader, writer = FdReader(reading), FdWriter(writing)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(reader.read())
        await asyncio.sleep(0)
        reader.expire_after(0.01)
    assert waiting.result() == b""
    await writer.write(b"late but there")
    assert await reader.read() == b"late but there", "what is there is read in any case"
    assert await reader.read() == b""


async def test_a_cancelled_read_takes_nothing_and_leaves_no_watch(pipe):
    reading, writing = pipe
    reader, writer = FdReader(reading), FdWriter(writing)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reader.read())
        await asyncio.sleep(0)
        task.cancel()
    await writer.write(b"x")
    assert await reader.read() == b"x"
    assert asyncio.get_running_loop().remove_reader(reading.fileno()) is False


async def test_a_terminal_ends_when_its_other_side_closes():
    master, slave = map(Fd, os.openpty())
    reader = FdReader(master)
    os.write(slave.fileno(), b"last words")
    slave.close()
    received = b""
    while data := await reader.read():
        received += data
    assert received == b"last words"
    assert await FdWriter(master).write(b"x" * 100_000) in {True, False}
    master.close()


def reference(text):
    """A return goes when a return is before it and a line feed after it, in what was written."""
    return b"".join(
        text[i : i + 1]
        for i in range(len(text))
        if not (
            text[i : i + 1] == b"\r" and text[i - 1 : i] == b"\r" and text[i + 1 : i + 2] == b"\n"
        )
    )


@given(st.text("\r\nx", max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_doubled_returns_however_they_are_cut(text, cuts):
    wire = text.encode()
    cuts = sorted(min(cut, len(wire)) for cut in cuts)
    doubled = DoubledReturns()
    pieces = [
        doubled.feed(wire[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
    ]
    assert b"".join(pieces) + doubled.rest() == reference(wire)


async def test_a_relayed_terminal(pipe):
    reading, writing = pipe
    reader, writer = RelayedReader(reading), FdWriter(writing)
    for piece in (b"one\r\r\ntwo\r\n50%\r", b"\r\n", b"last\r\r"):
        await writer.write(piece)
    writing.close()
    received = b""
    while data := await reader.read():
        received += data
    assert received == b"one\r\ntwo\r\n50%\r\nlast\r\r"
