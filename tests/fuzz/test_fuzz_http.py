"""Answers of a registry that anything may have happened to: an answer, or an honest refusal.

And the same one however the network cuts them; and where h11 reads all of it, what h11 reads.
"""

from __future__ import annotations

import asyncio

import h11
from hypothesis import given
from hypothesis import strategies as st

from imageservice.errors import RegistryUnavailable
from imageservice.registry.answer import MAX_INTERIM, Message, NoAnswer, ask
from imageservice.registry.origins import Origin
from tests.fakes.wires import memory_wire
from tests.kit.fuzzing import assert_tellable, fuzzed

ORIGIN = Origin("https", "registry.test", 443)

Outcome = tuple[str, int, bytes, bool]


async def _outcome(pieces: list[bytes], method: str) -> Outcome:
    """What came of it: how it ended, status, body, whether the connection may be used again."""
    wire, _ = memory_wire()
    for piece in pieces:
        wire.data_received(piece)
    wire.eof_received()
    try:
        found = await ask(wire, Message(method, "/", (("Host", "a"),)), ORIGIN)
    except (h11.RemoteProtocolError, ConnectionError) as error:
        return type(error).__name__, 0, b"", False
    body = b""
    try:
        while chunk := await found.read_chunk():
            body += chunk
    except RegistryUnavailable as error:
        assert_tellable(error)
        return type(error).__name__, found.status, body, found.is_reusable
    return "", found.status, body, found.is_reusable


def outcome(pieces: list[bytes], method: str = "GET") -> Outcome:
    return asyncio.run(_outcome(pieces, method))


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Something that a server might say, right or nearly so."""
    body = draw(st.binary(max_size=40))
    fields = draw(
        st.lists(
            st.sampled_from(
                [
                    b"Content-Length: %d" % len(body),
                    b"Content-Length: %d" % (len(body) + 1),
                    b"content-length: 3",
                    b"Transfer-Encoding: chunked",
                    b"Transfer-Encoding: gzip",
                    b"Connection: close",
                    b"Connection: keep-alive",
                    b"X: y",
                    b"X:\xff\xfe",
                    b" folded",
                    b"nothing",
                ]
            ),
            max_size=3,
        )
    )
    if b"Transfer-Encoding: chunked" in fields and draw(st.booleans()):
        cut = draw(st.integers(0, len(body)))
        parts = [part for part in (body[:cut], body[cut:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        body += b"0\r\n" + draw(st.sampled_from([b"", b"T: u\r\n"])) + b"\r\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    first = draw(
        st.sampled_from(
            [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.0 200 OK", b"HTTP/1.1 404"]
        )
    )
    text = interim + b"\r\n".join([first, *fields, b"", b""]) + body
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 4))
        text = text[:place] + draw(st.binary(max_size=4)) + text[place + length :]
    return text


methods = st.sampled_from(["GET", "GET", "HEAD"])


@fuzzed()
@given(answers(), methods, st.data())
def test_an_answer_is_the_same_however_it_is_cut(
    text: bytes, method: str, data: st.DataObject
) -> None:
    places = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    whole = outcome([text] if text else [], method)
    assert outcome([piece for piece in pieces if piece], method) == whole
    assert outcome([text[i : i + 1] for i in range(len(text))], method) == whole


@fuzzed()
@given(st.binary(max_size=80))
def test_anything_at_all(text: bytes) -> None:
    assert outcome([text] if text else [])[0] in {"RemoteProtocolError", NoAnswer.__name__,
                                                 "ConnectionResetError"}  # fmt: skip


def _by_h11_alone(text: bytes, method: str) -> tuple[int, bytes] | None:
    """Status and body where all is well."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(text)
    http.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


@fuzzed()
@given(answers(), methods)
def test_where_a_body_ends_is_what_h11_says(text: bytes, method: str) -> None:
    """Also where its bytes are counted beside h11."""
    error, status, body, _ = outcome([text] if text else [], method)
    alone = _by_h11_alone(text, method)
    if not error:
        assert alone == (status, body)
    elif alone is not None:  # only what is refused here and not there
        head = text.lower()
        assert (b"content-length" in head and b"transfer-encoding" in head) or not (
            text.startswith(b"HTTP/1.")
        )


async def _reusable(text: bytes) -> bool:
    """Whether this is an answer to its end, and another may come over the same connection."""
    wire, _ = memory_wire()

    async def whole() -> bool:
        found = await ask(wire, Message("GET", "/", (("Host", "a"),)), ORIGIN)
        while await found.read_chunk():
            pass
        return found.is_reusable

    wire.data_received(text)
    reading = asyncio.ensure_future(whole())
    for _ in range(20):  # what is not there by then does not come
        await asyncio.sleep(0)
    reading.cancel()
    [result] = await asyncio.gather(reading, return_exceptions=True)
    return result is True


@fuzzed()
@given(answers(), st.binary(min_size=1, max_size=20))
def test_what_follows_an_answer_is_no_answer_to_the_next_request(text: bytes, more: bytes) -> None:
    if text and asyncio.run(_reusable(text)):
        assert not asyncio.run(_reusable(text + more))


def test_as_many_interim_answers_as_there_may_be() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" * MAX_INTERIM
    text = interim + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    assert outcome([text]) == ("", 200, b"a", False)
