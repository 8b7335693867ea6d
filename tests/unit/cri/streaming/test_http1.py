import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.http1 import REQUEST_LIMIT_BYTES, HttpExchange, HttpRequest, Malformed

REQUEST = (
    b"POST /exec/token?x=y HTTP/1.1\r\n"
    b"Host: localhost\r\n"
    b"Connection: Upgrade\r\n"
    b"upgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io, v3.channel.k8s.io\r\n"
    b"X-Stream-Protocol-Version: v2.channel.k8s.io\r\n"
    b"Content-Length: 0\r\n"
    b"\r\n"
)


def outcome(*pieces):
    exchange = HttpExchange()
    found = [exchange.receive_data(piece) for piece in pieces]
    return exchange, next((item for item in found if item is not None), None)


def test_a_request():
    _, request = outcome(REQUEST)
    assert isinstance(request, HttpRequest)
    assert (request.method, request.path) == ("POST", "/exec/token")
    assert request.value("upgrade") == "SPDY/3.1"
    assert request.values("x-stream-protocol-version") == [
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
    ]
    assert request.value("x-stream-protocol-version") == "", "twice is ambiguous"
    assert request.value("absent") == ""


@given(st.lists(st.integers(1, len(REQUEST) - 1), max_size=6))
def test_a_request_however_it_is_cut(cuts):
    cuts = sorted(cuts)
    _, whole = outcome(REQUEST)
    pieces = [REQUEST[a:b] for a, b in zip([0, *cuts], [*cuts, len(REQUEST)], strict=True)]
    _, request = outcome(*[piece for piece in pieces if piece])
    assert request == whole


def test_what_follows_the_request_belongs_to_the_next_protocol():
    exchange, _ = outcome(REQUEST + b"\x80\x03early")
    exchange.receive_data(b" bird")
    answer, trailing = exchange.switch((("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")))
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n")
    assert trailing == b"\x80\x03early bird"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x80\x03\x00\x01\x00\x00\x00\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused(text, status):
    exchange, found = outcome(text)
    assert isinstance(found, Malformed), found
    assert found.status == status
    answer = exchange.refuse(found.status, found.reason)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in answer


def test_endless_headers_are_bounded():
    exchange = HttpExchange()
    sent = 0
    found = exchange.receive_data(b"GET / HTTP/1.1\r\n")
    while found is None:
        line = b"X-Filler: " + b"a" * 1000 + b"\r\n"
        found = exchange.receive_data(line)
        sent += len(line)
        assert sent < 2 * REQUEST_LIMIT_BYTES
    assert isinstance(found, Malformed)
    assert found.status == 431


def test_a_client_that_says_nothing():
    _, found = outcome(b"")
    assert isinstance(found, Malformed)


def test_there_is_no_redirect_in_a_refusal():
    exchange, _ = outcome(REQUEST)
    answer = exchange.refuse(404, "not found")
    assert b"Location" not in answer
    assert answer.startswith(b"HTTP/1.1 404 Not Found")


@given(st.binary(max_size=400))
def test_garbage_never_raises(garbage):
    HttpExchange().receive_data(garbage)
