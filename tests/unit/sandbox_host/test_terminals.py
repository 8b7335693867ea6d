import asyncio
import os
import socket
import termios

import pytest

from sandbox.host import terminals
from sandbox.host.errors import Corrupt
from sandbox.host.files import Fd


@pytest.fixture
def pair():
    master, slave = terminals.open_raw_pair()
    yield master, slave
    master.close()
    slave.close()


def test_a_raw_pair_passes_every_byte_and_echoes_none(pair):
    master, slave = pair
    everything = bytes(range(256))
    os.write(master.fileno(), everything)
    assert os.read(slave.fileno(), 1000) == everything
    os.write(slave.fileno(), b"a\nb")
    assert os.read(master.fileno(), 1000) == b"a\nb"


def test_sizes(pair):
    master, slave = pair
    terminals.set_size(master, 123, 45)
    assert os.get_terminal_size(slave.fileno()) == (123, 45)
    terminals.set_size(master, 65_535, 65_535)
    assert os.get_terminal_size(slave.fileno()) == (65_535, 65_535)


def test_sizes_of_what_is_no_terminal_are_no_error(pair):
    master, _ = pair
    pipe_reading, pipe_writing = map(Fd, os.pipe())
    terminals.set_size(pipe_reading, 80, 24)
    pipe_reading.close()
    pipe_writing.close()
    master.close()
    terminals.set_size(master, 80, 24)


def test_the_end_of_input_is_a_character_in_line_mode_only(pair):
    master, slave = pair
    assert terminals.end_of_input(master) == b""
    attributes = termios.tcgetattr(slave.fileno())
    attributes[3] |= termios.ICANON
    attributes[6][termios.VEOF] = b"\x05"
    termios.tcsetattr(slave.fileno(), termios.TCSANOW, attributes)
    assert terminals.end_of_input(master) == b"\x05"
    master.close()
    assert terminals.end_of_input(master) == b""


async def test_a_terminal_is_handed_over(tmp_path, pair):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    console = terminals.ConsoleSocket(deep)
    _, slave = pair

    async with asyncio.TaskGroup() as group:
        received = group.create_task(console.receive())
        runtime = socket.socket(socket.AF_UNIX)
        runtime.connect(console.path)
        await asyncio.sleep(0)
        socket.send_fds(runtime, [b"/dev/pts/0"], [slave.fileno()])
    with received.result() as fd:
        assert os.isatty(fd.fileno())
        assert not os.get_inheritable(fd.fileno())
    runtime.close()
    console.close()
    console.close()


@pytest.mark.parametrize("what", ["nothing", "a file"])
async def test_what_is_no_terminal_is_refused(tmp_path, what):
    console = terminals.ConsoleSocket(tmp_path)
    descriptors = [os.open("/dev/null", os.O_RDONLY)] if what == "a file" else []
    runtime = socket.socket(socket.AF_UNIX)
    runtime.connect(console.path)
    socket.send_fds(runtime, [b"x"], descriptors)
    with pytest.raises(Corrupt):
        await console.receive()
    runtime.close()
    for number in descriptors:
        os.close(number)
    console.close()
