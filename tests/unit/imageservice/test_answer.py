"""Answers of HTTP, byte by byte: where they end, what is refused, what may follow."""

from __future__ import annotations

import asyncio
import errno
import ssl

import h11
import pytest

from imageservice.errors import RegistryUnavailable, TooLarge
from imageservice.registry import answer
from imageservice.registry.answer import Answer, Message, NoAnswer, ask
from imageservice.registry.origins import Origin
from imageservice.registry.wire import FULL_BYTES
from tests.fakes.wires import memory_wire

ORIGIN = Origin("https", "registry.test", 443)
OK = b"HTTP/1.1 200 OK\r\n"


def message(method: str = "GET", *headers: tuple[str, str], body: bytes = b"") -> Message:
    return Message(method, "/v2/", (("Host", "registry.test"), *headers), body)


async def answered(*pieces: bytes, method: str = "GET", ends: bool = False) -> Answer:
    """The answer that arrives in these pieces, all of them before it is asked for."""
    wire, _ = memory_wire()
    for piece in pieces:
        wire.data_received(piece)
    if ends:
        wire.eof_received()
    return await ask(wire, message(method), ORIGIN)


async def body_of(found: Answer) -> bytes:
    return await found.read(limit_bytes=1 << 20)


# The whole answer, how it is asked, its body, whether the connection is closed, may be used again.
ANSWERS = {
    "length": (OK + b"Content-Length: 5\r\nX: y\r\n\r\nhello", "GET", b"hello", False, True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", "GET", b"", False, True),
    "the same length twice": (
        OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nab",
        "GET",
        b"ab",
        False,
        True,
    ),
    "chunks": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n00002\r\nde\r\n0\r\nT: u\r\n\r\n",
        "GET",
        b"abcde",
        False,
        True,
    ),
    "until the end": (OK + b"X: y\r\n\r\nhello", "GET", b"hello", True, False),
    "HEAD": (OK + b"Content-Length: 5\r\n\r\n", "HEAD", b"", False, True),
    "HEAD without length": (OK + b"\r\n", "HEAD", b"", False, True),
    "HEAD of chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", "HEAD", b"", False, True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", b"", False, True),
    "304": (b"HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n", "GET", b"", False, True),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + OK
        + b"Content-Length: 1\r\n\r\na",
        "GET",
        b"a",
        False,
        True,
    ),
    "close": (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", "GET", b"a", False, False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", "GET", b"a", False, False),
    "more after a length": (OK + b"Content-Length: 1\r\n\r\naHTTP/1.1", "GET", b"a", False, False),
    "more after chunks": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1",
        "GET",
        b"",
        False,
        False,
    ),
    "more after HEAD": (OK + b"Content-Length: 1\r\n\r\na", "HEAD", b"", False, False),
    "more after 204": (b"HTTP/1.1 204 No\r\n\r\nbody", "GET", b"", False, False),
    "status without a reason": (
        b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na",
        "GET",
        b"a",
        False,
        True,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_however_it_is_cut(name):
    whole, method, body, ends, is_reusable = ANSWERS[name]
    for place in range(1, len(whole)):
        found = await answered(whole[:place], whole[place:], method=method, ends=ends)
        assert await body_of(found) == body, place
        assert found.is_reusable is is_reusable, place
    single = await answered(
        *(whole[i : i + 1] for i in range(len(whole))), method=method, ends=ends
    )
    assert await body_of(single) == body
    assert single.is_reusable is is_reusable


@pytest.mark.parametrize("name", [name for name, row in ANSWERS.items() if row[2]])
async def test_a_body_that_is_not_read_to_its_end_uses_the_connection_up(name):
    whole, method, _, ends, _ = ANSWERS[name]
    assert not (await answered(whole, method=method, ends=ends)).is_reusable


async def test_headers_are_found_whatever_their_case():
    found = await answered(OK + b"X-One:  a \r\nx-one: b\r\nContent-Length: 0\r\nN: \xe9\r\n\r\n")
    assert found.status == 200
    assert found.header("X-ONE") == "a"
    assert found.headers("x-One") == ("a", "b")
    assert found.header("n") == "é"
    assert found.header("absent") == ""


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 4301 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n continued: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (answer.MAX_INTERIM + 1) + OK + b"\r\n",
        OK + b"X: " + b"a" * answer.MAX_HEADER_LINE_BYTES + b"\r\n\r\n",
        OK + b"X: a\r\n" * (answer.MAX_HEADERS + 1) + b"\r\n",
        OK + b"X: " + b"a" * answer.MAX_HEAD_BYTES,
        (OK + b"X: " + b"a" * 15_000 + b"\r\n" + b"X: " + b"a" * 15_000 + b"\r\n") * 3,
    ],
)
async def test_what_is_not_http_within_bounds_is_refused_before_a_byte_of_its_body(head):
    with pytest.raises(h11.RemoteProtocolError):
        await answered(head)
    with pytest.raises(h11.RemoteProtocolError):
        await answered(*(head[i : i + 4093] for i in range(0, len(head), 4093)))


async def test_another_protocol_is_told_at_its_first_bytes():
    """No line of it has ended, and the other side waits."""
    with pytest.raises(h11.RemoteProtocolError):
        await answered(b"SSH-")


@pytest.mark.parametrize(
    "text",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * (answer.MAX_HEAD_BYTES + 10),
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: u\r\n" * answer.MAX_HEAD_BYTES,
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"Content-Length: 3\r\n\r\nab",
        b"Content-Length: 3\r\n\r\n",
    ],
)
async def test_a_body_that_is_malformed_or_ends_early_is_an_error_that_says_so(text):
    found = await answered(OK + text, ends=True)
    with pytest.raises(RegistryUnavailable, match="ended the answer too early"):
        await body_of(found)
    with pytest.raises(RegistryUnavailable, match="ended the answer too early"):
        await found.read_chunk()
    assert not found.is_reusable


async def test_what_came_of_chunks_before_a_malformed_one_is_handed_out():
    text = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\nzz\r\n"
    found = await answered(OK + text)
    assert await found.read_chunk() == b"abcde"
    with pytest.raises(RegistryUnavailable):
        await found.read_chunk()


@pytest.mark.parametrize("came", [b"", b"HTTP/1.1 20"])
async def test_an_end_before_an_answer_is_told_apart_from_one_within_it(came):
    with pytest.raises(ConnectionError) as caught:
        await answered(*([came] if came else []), ends=True)
    assert isinstance(caught.value, NoAnswer) is not came


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH])
async def test_whatever_broke_the_connection_there_was_no_answer_if_nothing_had_come(number):
    wire, _ = memory_wire()
    wire.connection_lost(OSError(number, "lost"))
    with pytest.raises(NoAnswer) as caught:
        await ask(wire, message(), ORIGIN)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


async def test_a_failure_of_tls_is_told_as_such_though_nothing_had_come():
    wire, _ = memory_wire()
    wire.connection_lost(ssl.SSLError(1, "certificate required"))
    with pytest.raises(ssl.SSLError):
        await ask(wire, message(), ORIGIN)


@pytest.mark.parametrize("text", [b"Content-Length: 9\r\n\r\n123456789", b"\r\n123456789"])
async def test_a_document_beyond_its_bound_is_not_read(text):
    found = await answered(OK + text, ends=True)
    with pytest.raises(TooLarge):
        await found.read(limit_bytes=8)


async def test_a_request_goes_out_as_it_was_written_in_one_piece():
    wire, transport = memory_wire()
    wire.data_received(OK + b"Content-Length: 0\r\n\r\n")
    asked = message("POST", ("X-Token", " a b\t"), ("Content-Length", "3"), body=b"x=y")
    await ask(wire, asked, ORIGIN)
    assert transport.sent == (
        b"POST /v2/ HTTP/1.1\r\nHost: registry.test\r\nX-Token: a b\r\nContent-Length: 3\r\n\r\nx=y"
    )


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\rb", "a\0b", "a\x0bb"])
async def test_a_header_that_would_be_two_is_not_sent(value):
    wire, transport = memory_wire()
    with pytest.raises(h11.LocalProtocolError):
        await ask(wire, message("GET", ("Authorization", value)), ORIGIN)
    assert transport.sent == b""


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/\x00", ""])
async def test_a_target_that_would_end_its_line_is_not_sent(target):
    wire, transport = memory_wire()
    with pytest.raises(h11.LocalProtocolError):
        await ask(wire, Message("GET", target, (("Host", "a"),)), ORIGIN)
    assert transport.sent == b""


async def test_a_consumer_that_is_slow_stops_the_sender():
    wire, transport = memory_wire()
    wire.data_received(OK + b"Content-Length: 100000000\r\n\r\n")
    found = await ask(wire, message(), ORIGIN)
    sent = 0
    while transport.reads:
        wire.data_received(bytes(64 * 1024))
        sent += 64 * 1024
    assert sent == FULL_BYTES
    read = 0
    while not transport.reads:
        read += len(await found.read_chunk())
    assert 0 < read < sent


async def test_a_body_with_a_length_is_handed_on_without_a_copy():
    wire, _ = memory_wire()
    wire.data_received(OK + b"Content-Length: 200000\r\n\r\n")
    found = await ask(wire, message(), ORIGIN)
    piece = bytes(100_000)
    wire.data_received(piece)
    assert await found.read_chunk() is piece


async def test_a_body_in_chunks_of_a_byte_does_not_hold_the_event_loop():
    wire, _ = memory_wire()
    wire.data_received(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    found = await ask(wire, message(), ORIGIN)
    wire.data_received(b"1\r\na\r\n" * 10_000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(others())
    sizes = [len(await found.read_chunk()) for _ in range(10)]
    beside.cancel()
    assert sizes == [answer.MAX_EVENTS] * 10
    assert turns >= len(sizes)
