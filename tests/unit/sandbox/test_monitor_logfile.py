"""The guard of log paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.errors import LogPathRefused
from sandbox.host.errors import PodwrightError
from sandbox.monitor import logfile


@pytest.mark.parametrize(
    "path",
    [
        "relative.log",
        "",
        "/",
        "/var/log/../../etc/passwd",
        "/var/log/a:b/0.log",
        "/var/log/a\nb",
        "/var/log/a\0b",
        "/var/log/\x7f",
        "/var/log/" + "x" * 252,
        "/" + "x/" * 3000 + "0.log",
    ],
)
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(LogPathRefused):
        logfile.check_log_path(path)


def test_a_path_of_the_kubelet() -> None:
    path = "/var/log/pods/ns_name_uid-1/app/0.log"
    assert logfile.check_log_path(path) == Path(path)


def test_directories_and_file_are_made(tmp_path: Path) -> None:
    log = logfile.prepare_log(str(tmp_path / "a" / "b" / "0.log"))
    assert log.created
    assert log.path.stat().st_mode & 0o777 == logfile.LOG_MODE & ~_umask()
    log.discard()
    assert not log.path.exists()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_an_existing_log_is_kept_and_not_discarded(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("before\n")
    log = logfile.prepare_log(str(path))
    assert not log.created
    log.discard()
    assert path.read_text() == "before\n"


def test_a_linked_directory_is_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    log = logfile.prepare_log(str(tmp_path / "link" / "0.log"))
    assert log.path == tmp_path / "real" / "0.log"


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PodwrightError):
        logfile.prepare_log(str(tmp_path / "file" / "0.log"))


def test_reopening_replaces_a_planted_temporary(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    log = tmp_path / "0.log"
    logfile.temporary_of(log).symlink_to(victim)
    inode = logfile.prepare_reopen(log)
    temporary = logfile.temporary_of(log)
    assert not temporary.is_symlink()
    assert temporary.stat().st_ino == inode
    assert victim.read_text() == "untouched"


def test_who_writes_a_log_is_known_by_its_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    assert not logfile.is_written_by(os.getpid(), log)
    with log.open("w"):
        assert logfile.is_written_by(os.getpid(), log)
        log.rename(tmp_path / "old")
        assert not logfile.is_written_by(os.getpid(), log)
        log.write_text("")
        assert not logfile.is_written_by(os.getpid(), log)
    assert not logfile.is_written_by(2**22, log)
