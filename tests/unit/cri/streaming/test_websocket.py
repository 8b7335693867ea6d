import base64
import contextlib
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from cri.streaming.websocket import (
    ChannelClosed,
    ChannelData,
    WebSocketChannels,
    WebSocketTunnel,
    WsClosed,
    WsPinged,
)
from sandbox.host.errors import Corrupt


class Client:
    """The client's side, on wsproto as well: what it frames, RFC 6455 has framed."""

    def __init__(self):
        self.connection = Connection(ConnectionType.CLIENT)

    def binary(self, data, *, last=True):
        return self.connection.send(BytesMessage(data, message_finished=last))

    def text(self, text, *, last=True):
        return self.connection.send(TextMessage(text, message_finished=last))

    def gets(self, wire):
        self.connection.receive_data(wire)
        return list(self.connection.events())


@pytest.fixture
def client():
    return Client()


def test_a_message_belongs_to_the_channel_of_its_first_byte(client):
    codec = WebSocketChannels()
    assert list(codec.receive_data(client.binary(b"\0hello"))) == [ChannelData(0, b"hello")]
    assert list(codec.receive_data(client.binary(b"\x04{}"))) == [ChannelData(4, b"{}")]
    (message,) = client.gets(codec.send(1, b"output"))
    assert message.data == b"\x01output"


def test_empty_messages_mean_nothing(client):
    codec = WebSocketChannels()
    assert list(codec.receive_data(client.binary(b""))) == []
    assert list(codec.receive_data(client.binary(b"\0"))) == []
    (message,) = client.gets(codec.send(1, b""))
    assert message.data == b"\x01", "the sign that the connection works"


def test_fragments_are_one_message(client):
    codec = WebSocketChannels()
    wire = client.binary(b"", last=False) + client.binary(b"\0he", last=False)
    wire += client.binary(b"", last=False) + client.binary(b"llo", last=True)
    events = list(codec.receive_data(wire + client.binary(b"\x02x")))
    assert b"".join(e.data for e in events if e.channel == 0) == b"hello"
    assert events[-1] == ChannelData(2, b"x")


def test_closing_one_channel(client):
    codec = WebSocketChannels(half_close=True)
    wire = client.binary(b"\0last") + client.binary(b"\xff\0")
    assert list(codec.receive_data(wire)) == [ChannelData(0, b"last"), ChannelClosed(0)]


def test_before_v5_255_is_a_channel_like_others(client):
    assert list(WebSocketChannels().receive_data(client.binary(b"\xff\0"))) == [
        ChannelData(255, b"\0")
    ]


@pytest.mark.parametrize("signal", [b"\xff", b"\xff\0\0", b"\xff" * 1000])
def test_a_close_signal_names_one_channel(client, signal):
    codec = WebSocketChannels(half_close=True)
    with pytest.raises(Corrupt, match="signal"):
        list(codec.receive_data(client.binary(signal)))


def test_base64(client):
    codec = WebSocketChannels(base64_text=True)
    text = "0" + base64.b64encode(b"foo\n").decode()
    assert list(codec.receive_data(client.text(text))) == [ChannelData(0, b"foo\n")]
    (message,) = client.gets(codec.send(1, b"\n"))
    assert message.data == "1Cg=="


@pytest.mark.parametrize("text", ["0!!!!", "0Zm9", "0Zm9v=Zm9", "/Zm9v"])
def test_what_is_no_base64(client, text):
    with pytest.raises(Corrupt):
        list(WebSocketChannels(base64_text=True).receive_data(client.text(text)))


def test_types_of_messages_are_kept_apart(client):
    with pytest.raises(Corrupt, match="type"):
        list(WebSocketChannels().receive_data(client.text("0x")))
    with pytest.raises(Corrupt, match="type"):
        list(WebSocketChannels(base64_text=True).receive_data(Client().binary(b"0x")))
    with pytest.raises(Corrupt, match="type"):
        list(WebSocketTunnel().receive_data(Client().text("0x")))


def test_pings_are_answered(client):
    codec = WebSocketChannels()
    assert list(codec.receive_data(client.connection.send(Ping(b"5")))) == [WsPinged(b"5")]
    (pong,) = client.gets(codec.pong(b"5"))
    assert bytes(pong.payload) == b"5"


def test_the_end(client):
    codec = WebSocketChannels()
    (event,) = codec.receive_data(client.connection.send(CloseConnection(1000, "bye")))
    assert event == WsClosed(1000, "bye")
    (answer,) = client.gets(codec.close(1000))
    assert answer.code == CloseReason.NORMAL_CLOSURE
    assert codec.close() == b""
    assert codec.send(1, b"late") == b""
    assert codec.pong(b"late") == b""
    assert list(codec.receive_data(b"late")) == []


def test_our_end_is_said_once_and_the_client_is_still_heard(client):
    codec = WebSocketChannels()
    assert client.gets(codec.close())[0].code == CloseReason.NORMAL_CLOSURE
    assert codec.close() == b""
    assert codec.send(1, b"late") == b""


@pytest.mark.parametrize(
    "wire",
    [
        b"\x82\x05hello",  # not masked
        b"\x83\x80\0\0\0\0",  # opcode 3
        b"\xc2\x80\0\0\0\0",  # a reserved bit
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        b"\x09\x80\0\0\0\0",  # a fragmented ping
        b"\x89\xfe\x01\x00\0\0\0\0",  # a long ping
        b"\x82\xff" + b"\xff" * 8,  # a length with its highest bit set
        b"\x82\xfe\0\x05\0\0\0\0",  # a length written longer than it has to be
    ],
)
def test_a_broken_frame_ends_the_connection(wire):
    *_, last = WebSocketChannels().receive_data(wire)
    assert isinstance(last, WsClosed)
    assert last.code == 1002


def test_a_message_of_exabytes_costs_what_has_come_of_it():
    codec = WebSocketChannels()
    head = b"\x82\xff" + struct.pack(">Q", 2**62) + b"\0\0\0\0"
    assert list(codec.receive_data(head)) == []
    assert list(codec.receive_data(b"\0")) == []
    piece = b"x" * 64 * 1024
    tracemalloc.start()
    for _ in range(100):
        (event,) = codec.receive_data(piece)
        assert event == ChannelData(0, piece)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10 * len(piece)


def test_a_tunnel_is_a_stream_of_bytes(client):
    tunnel = WebSocketTunnel()
    wire = client.binary(b"abc") + client.binary(b"") + client.binary(b"def")
    assert b"".join(tunnel.receive_data(wire)) == b"abcdef"
    (message,) = client.gets(tunnel.send(b"xyz"))
    assert message.data == b"xyz"


channel_messages = st.lists(
    st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=200), st.integers(0, 3)),
    max_size=6,
)


def joined(events):
    result = []
    for event in events:
        if (
            result
            and isinstance(event, ChannelData)
            and isinstance(result[-1], ChannelData)
            and result[-1].channel == event.channel
        ):
            result[-1] = ChannelData(event.channel, result[-1].data + event.data)
        else:
            result.append(event)
    return result


@given(channel_messages, st.booleans(), st.data())
def test_messages_round_trip_however_they_are_cut(messages, base64_text, data):
    client = Client()
    wire = b""
    for channel, content, close in messages:
        if base64_text:
            wire += client.text(str(channel) + base64.b64encode(content).decode())
        else:
            wire += client.binary(bytes([channel]) + content)
        if close == 0 and not base64_text:
            wire += client.binary(bytes([255, channel]))
    expected = []
    for channel, content, close in messages:
        expected.append(ChannelData(channel, content))
        if close == 0 and not base64_text:
            expected.append(ChannelClosed(channel))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    codec = WebSocketChannels(base64_text=base64_text, half_close=not base64_text)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += codec.receive_data(wire[start:end])
    assert joined(found) == joined(expected)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_garbage_gives_events_or_corrupt(garbage, base64_text, half_close):
    codec = WebSocketChannels(base64_text=base64_text, half_close=half_close)
    with contextlib.suppress(Corrupt):
        list(codec.receive_data(garbage))
