"""conmon's attach packets and control messages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import MonitorGone
from sandbox.host.errors import Corrupt
from sandbox.monitor import control
from sandbox.monitor.attach import (
    INPUT_LIMIT_BYTES,
    Output,
    decode_packet,
    encode_packet,
    split_input,
)


@given(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=8192))
def test_packets_round_trip(stream: str, data: bytes) -> None:
    output = Output(stream, data)  # type: ignore[arg-type]
    assert decode_packet(encode_packet(output)) == output


def test_the_first_byte_names_the_stream() -> None:
    assert decode_packet(b"\x02out") == Output("stdout", b"out")
    assert decode_packet(b"\x03err") == Output("stderr", b"err")


@given(st.binary(max_size=50))
def test_any_packet_is_read_or_refused(packet: bytes) -> None:
    if packet[:1] in {b"\x02", b"\x03"}:
        assert decode_packet(packet).data == packet[1:]
    else:
        with pytest.raises(Corrupt):
            decode_packet(packet)


@given(st.integers(0, 200_000))
def test_input_is_split_without_loss_into_packets_that_fit(size: int) -> None:
    data = bytes(size)
    packets = list(split_input(data))
    assert b"".join(packets) == data
    assert all(0 < len(packet) <= INPUT_LIMIT_BYTES for packet in packets)


@given(st.integers(), st.integers())
def test_a_control_message_fills_one_read_of_conmon(width: int, height: int) -> None:
    message = control.resize_message(width, height)
    if width < 1 or height < 1:
        assert message is None
        return
    assert message is not None
    assert len(message) == control.MESSAGE_BYTES
    assert message.endswith(b"\n")
    rows, columns = (int(word) for word in message.split())
    assert (rows, columns) == (min(height, 1000), min(width, 1000))


def test_the_message_that_reopens_logs() -> None:
    message = control.reopen_message()
    assert message.split() == [b"2", b"0", b"0"]
    assert len(message) == control.MESSAGE_BYTES


def test_sending_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(MonitorGone):
        control.send(tmp_path / "absent", b"x")
    fifo = tmp_path / "ctl"
    os.mkfifo(fifo)
    with pytest.raises(MonitorGone, match="dead"):
        control.send(fifo, b"x")


def fill(fifo: Path, message: bytes) -> None:
    for _ in range(10_000):
        control.send(fifo, message)


def test_sending_to_one_who_does_not_read(tmp_path: Path) -> None:
    fifo = tmp_path / "ctl"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        message = control.reopen_message()
        with pytest.raises(MonitorGone, match="does not read"):
            fill(fifo, message)
        assert os.read(reader, control.MESSAGE_BYTES) == message
    finally:
        os.close(reader)
