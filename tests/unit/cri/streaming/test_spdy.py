import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import spdy_frames as frames
from cri.streaming.spdy import (
    GoneAway,
    Pinged,
    SpdySession,
    StreamData,
    StreamOpened,
    StreamReset,
    WindowOpened,
)
from cri.streaming.spdy_headers import HeaderCompressor, HeaderDecompressor
from sandbox.host.errors import Corrupt


class Peer:
    """A client's side of the wire, frame by frame."""

    def __init__(self, *, streams_limit=16):
        self.session = SpdySession(streams_limit=streams_limit)
        self._compressor = HeaderCompressor()
        self._decompressor = HeaderDecompressor()
        self._decoder = frames.FrameDecoder()

    def sends(self, *wire):
        return list(self.session.receive_data(b"".join(wire)))

    def syn(self, number, *, fin=False, **headers):
        return frames.syn_stream(number, self._compressor.compress(headers), fin=fin)

    def opens(self, *numbers, **headers):
        for number in numbers:
            self.sends(self.syn(number, **headers))
            self.session.accept(number)
        self.gets()

    def gets(self):
        return list(self._decoder.feed(self.session.data_to_send()))

    def headers_of(self, frame):
        return self._decompressor.decompress(frames.parse_block_frame(frame.payload)[1])


@pytest.fixture
def peer():
    return Peer()


def test_a_stream_is_opened_and_accepted(peer):
    assert peer.sends(peer.syn(1, streamType="stdin")) == [StreamOpened(1, {"streamtype": "stdin"})]
    peer.session.accept(1)
    (reply,) = peer.gets()
    assert reply.kind == frames.SYN_REPLY
    assert peer.headers_of(reply) == {}


def test_data_goes_both_ways_and_each_side_finishes_on_its_own(peer):
    peer.opens(1)
    assert peer.sends(frames.data_frame(1, b"in", fin=True)) == [StreamData(1, b"in", fin=True)]
    peer.session.send(1, b"out")
    peer.session.send(1, b"", fin=True)
    assert peer.gets() == [frames.Data(1, b"out"), frames.Data(1, b"", fin=True)]
    # Both are done: the stream is forgotten, later frames mean nothing.
    assert peer.sends(frames.data_frame(1, b"late"), frames.rst_stream(1, 5)) == []
    peer.session.send(1, b"late")
    assert peer.gets() == []


def test_a_reset_ends_both_directions(peer):
    peer.opens(1)
    assert peer.sends(frames.rst_stream(1, frames.CANCEL)) == [StreamReset(1, frames.CANCEL)]
    peer.session.send(1, b"x")
    peer.session.reset(1)
    assert peer.gets() == []
    assert peer.sends(frames.data_frame(1, b"x")) == []


def test_our_reset_is_sent_once(peer):
    peer.opens(1)
    peer.session.reset(1)
    peer.session.reset(1)
    (frame,) = peer.gets()
    assert frames.parse_pair(frame.payload) == (1, frames.CANCEL)


def test_pings_of_the_client_are_for_answering_ours_are_not(peer):
    assert peer.sends(frames.ping(7), frames.ping(8)) == [Pinged(7)]
    peer.session.pong(7)
    (frame,) = peer.gets()
    assert (frame.kind, frames.parse_ping(frame.payload)) == (frames.PING, 7)


def test_going_away(peer):
    peer.opens(1, 3)
    assert peer.sends(frames.goaway(0)) == [GoneAway()]
    peer.session.go_away()
    (frame,) = peer.gets()
    assert frames.parse_pair(frame.payload) == (3, 0)


def test_headers_frames_keep_the_compression_in_step(peer):
    peer.opens(1)
    block = peer._compressor.compress({"a": "b"})
    assert peer.sends(frames.control(frames.HEADERS, struct.pack(">I", 1) + block)) == []
    assert peer.sends(peer.syn(3, c="d")) == [StreamOpened(3, {"c": "d"})]


def test_refused_streams_keep_the_compression_in_step():
    peer = Peer(streams_limit=1)
    peer.opens(1, x="1")
    assert peer.sends(peer.syn(3, x="2")) == []
    (frame,) = peer.gets()
    assert frames.parse_pair(frame.payload) == (3, frames.REFUSED_STREAM)
    peer.sends(frames.rst_stream(1, frames.CANCEL))
    assert peer.sends(peer.syn(5, x="3")) == [StreamOpened(5, {"x": "3"})]


def test_unknown_frames_are_ignored(peer):
    assert peer.sends(frames.control(10, b"credential?"), frames.ping(1)) == [Pinged(1)]


@pytest.mark.parametrize(
    "number", [0, 2, 1], ids=["zero", "even: the server's", "not above the last"]
)
def test_stream_numbers_that_cannot_be(peer, number):
    peer.opens(1)
    with pytest.raises(Corrupt):
        peer.sends(peer.syn(number))


# Flow control.


def test_without_a_word_about_windows_nothing_is_held(peer):
    peer.opens(1)
    for _ in range(10):
        assert peer.session.sendable_bytes(1) == frames.DATA_LIMIT_BYTES
        peer.session.send(1, b"x" * 64 * 1024)
    peer.sends(*[frames.data_frame(1, b"y" * 1000)] * 100)
    peer.session.consumed(1, 100_000)
    assert all(isinstance(frame, frames.Data) for frame in peer.gets()), "no WINDOW_UPDATE"
    assert not peer.session.flow_control


def test_a_client_that_updates_windows_is_held_to_them(peer):
    peer.opens(1, 3)
    peer.session.send(1, b"x" * 60_000)
    assert peer.sends(frames.window_update(1, 1000)) == [WindowOpened(1)]
    assert peer.session.sendable_bytes(1) == 65_536 - 60_000, "the session's window is smaller"
    assert peer.sends(frames.window_update(0, 60_000)) == [WindowOpened(0)]
    assert peer.session.sendable_bytes(1) == 65_536 + 1000 - 60_000
    assert peer.session.sendable_bytes(3) == 65_536


def test_settings_change_the_windows_of_open_streams_too(peer):
    peer.opens(1)
    peer.session.send(1, b"x" * 100)
    assert peer.sends(frames.settings({frames.INITIAL_WINDOW_SIZE: 150})) == [WindowOpened(0)]
    assert peer.session.sendable_bytes(1) == 50
    peer.sends(frames.settings({frames.INITIAL_WINDOW_SIZE: 50}))
    assert peer.session.sendable_bytes(1) == 0, "a window may be below zero"
    peer.opens(3)
    assert peer.session.sendable_bytes(3) == 50


def test_what_was_consumed_is_given_back_in_portions(peer):
    peer.sends(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}))
    peer.opens(1)
    peer.session.consumed(1, 30_000)
    assert peer.gets() == []
    peer.session.consumed(1, 10_000)
    updates = {frames.parse_pair(frame.payload) for frame in peer.gets()}
    assert updates == {(1, 40_000), (0, 40_000)}


def test_dropped_data_is_given_back_to_the_session(peer):
    peer.sends(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}))
    peer.opens(1)
    peer.session.reset(1)
    peer.gets()
    peer.sends(frames.data_frame(1, b"x" * 50_000))
    (frame,) = peer.gets()
    assert frames.parse_pair(frame.payload) == (0, 50_000)


def test_windows_that_grow_beyond_their_limit(peer):
    peer.opens(1)
    events = peer.sends(frames.window_update(1, 2**31 - 1))
    assert events == [StreamReset(1, frames.FLOW_CONTROL_ERROR)]
    with pytest.raises(Corrupt):
        peer.sends(frames.window_update(0, 2**31 - 1))


def test_an_initial_window_beyond_its_limit(peer):
    with pytest.raises(Corrupt):
        peer.sends(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}))


# Hostile peers.


def test_a_flood_of_settings_leaves_nothing_behind(peer):
    frame = frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536, 1: 2, 3: 4})
    for _ in range(10_000):
        peer.sends(frame)
    assert peer.gets() == []
    assert peer.session._state.streams == {}


def test_a_flood_of_streams_opened_and_reset_leaves_nothing_behind(peer):
    for number in range(1, 20_001, 2):
        assert len(peer.sends(peer.syn(number), frames.rst_stream(number, 5))) == 2
    assert peer.session._state.streams == {}
    assert peer.gets() == []


@given(st.binary(max_size=600))
def test_garbage_gives_events_or_corrupt(garbage):
    with contextlib.suppress(Corrupt):
        list(SpdySession(streams_limit=4).receive_data(garbage))


# Any split of the bytes gives the same events.

actions = st.one_of(
    st.tuples(st.just("syn"), st.booleans(), st.sampled_from(["stdin", "error", "resize"])),
    st.tuples(st.just("data"), st.integers(0, 5), st.binary(max_size=200), st.booleans()),
    st.tuples(st.just("rst"), st.integers(0, 5)),
    st.tuples(st.just("ping"), st.integers(1, 100)),
    st.tuples(st.just("window"), st.integers(0, 5), st.integers(1, 1000)),
    st.tuples(st.just("goaway")),
)


def conversation(wanted):
    compressor = HeaderCompressor()
    opened = [1]
    wire = b""
    for action in wanted:
        match action:
            case ("syn", fin, kind):
                opened.append(opened[-1] + 2)
                block = compressor.compress({"streamType": kind})
                wire += frames.syn_stream(opened[-1], block, fin=fin)
            case ("data", index, data, fin):
                wire += frames.data_frame(opened[index % len(opened)], data, fin=fin)
            case ("rst", index):
                wire += frames.rst_stream(opened[index % len(opened)], frames.CANCEL)
            case ("ping", number):
                wire += frames.ping(number)
            case ("window", index, delta):
                wire += frames.window_update(opened[index % len(opened)], delta)
            case ("goaway",):
                wire += frames.goaway(0)
    return wire


def merged(events):
    result = []
    for event in events:
        last = result[-1] if result else None
        if (
            isinstance(event, StreamData)
            and isinstance(last, StreamData)
            and last.stream_id == event.stream_id
            and not last.fin
        ):
            result[-1] = StreamData(event.stream_id, last.data + event.data, event.fin)
        else:
            result.append(event)
    return [e for e in result if not isinstance(e, StreamData) or e.data or e.fin]


@given(st.lists(actions, max_size=12), st.data())
def test_any_split_gives_the_same_events(wanted, data):
    wire = conversation(wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    whole, parts = SpdySession(streams_limit=8), SpdySession(streams_limit=8)
    expected = merged(whole.receive_data(wire))
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += parts.receive_data(wire[start:end])
    assert merged(found) == expected
    assert parts.data_to_send() == whole.data_to_send()
