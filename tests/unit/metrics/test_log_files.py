import pytest

from metrics.log_files import LogFiles
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def logs(clock):
    files = LogFiles(clock=clock)
    yield files
    files.close()


def write(path, size):
    with path.open("ab") as file:
        file.write(b"x" * size)


async def test_growth_and_rate(logs, clock, tmp_path):
    path = tmp_path / "log"
    write(path, 100)
    assert logs.look({"a": path}).written_bytes == 0, "a former life's"
    write(path, 500)
    clock.advance(10)
    look = logs.look({"a": path})
    assert (look.written_bytes, look.rotations, look.rates) == (500, 0, {"a": 50.0})
    clock.advance(10)
    assert logs.look({"a": path}).rates == {"a": 0.0}


async def test_a_log_that_appears_later_counts_from_its_beginning(logs, clock, tmp_path):
    path = tmp_path / "log"
    assert logs.look({"a": path}) == logs.look({"a": path})
    write(path, 70)
    assert logs.look({"a": path}).written_bytes == 70


@pytest.mark.parametrize("removed", [False, True])
async def test_a_rotation_loses_nothing(logs, clock, tmp_path, removed):
    path, old = tmp_path / "log", tmp_path / "log.1"
    write(path, 10)
    logs.look({"a": path})
    write(path, 20)
    path.rename(old)
    write(old, 300)  # conmon writes on until it is told to open the new one
    assert logs.look({"a": path}).written_bytes == 320
    write(old, 1)
    write(path, 4000)
    if removed:
        old.unlink()
    clock.advance(1)
    look = logs.look({"a": path})
    assert (look.written_bytes, look.rotations) == (4001, 1)
    assert look.rates == {"a": 4001.0}
    write(path, 5)
    assert logs.look({"a": path}).written_bytes == 5


async def test_a_log_that_was_cut_short(logs, clock, tmp_path):
    path = tmp_path / "log"
    write(path, 100)
    logs.look({"a": path})
    path.write_bytes(b"123")
    look = logs.look({"a": path})
    assert (look.written_bytes, look.rotations) == (3, 0)


async def test_a_container_that_ended_is_counted_to_its_end(logs, clock, tmp_path):
    path = tmp_path / "log"
    write(path, 1)
    logs.look({"a": path})
    write(path, 9)
    look = logs.look({})
    assert (look.written_bytes, look.rates) == (9, {})
    write(path, 9)
    assert logs.look({}).written_bytes == 0


async def test_links_are_not_followed(logs, clock, tmp_path):
    logs.look({})
    write(tmp_path / "elsewhere", 50)
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    look = logs.look({"a": tmp_path / "log"})
    # The link itself is looked at: its length, never what it leads to.
    assert look.written_bytes == len(str(tmp_path / "elsewhere"))
    write(tmp_path / "elsewhere", 50)
    assert logs.look({"a": tmp_path / "log"}).written_bytes == 0


def test_nothing_stays_open(logs, tmp_path):
    from pathlib import Path

    path = tmp_path / "log"
    write(path, 1)
    logs.look({"a": path})
    held = [p for p in Path("/proc/self/fd").iterdir() if p.exists() and p.samefile(path)]
    assert len(held) == 1
    logs.close()
    logs.close()
    assert not [p for p in Path("/proc/self/fd").iterdir() if p.exists() and p.samefile(path)]
