"""Argument lists of the OCI runtimes, and what is read out of their words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import CommandNotFound, RuntimeBusy, RuntimeFailed
from sandbox.host.errors import InvalidArgument, ResourceExhausted
from sandbox.runtime.command import (
    MESSAGE_LIMIT_CHARS,
    CommandLine,
    describe,
    failure,
    has_error,
    parse_state,
    runtime_message,
    says_gone,
    version_numbers,
)
from sandbox.runtime.driver import RuntimeState, RuntimeStatus
from sandbox.settings import RuntimeHandler

CID = "a" * 64
HANDLER = RuntimeHandler(
    name="crun", path=Path("/usr/bin/crun"), root=Path("/run/x/crun"), options=("--debug",)
)
LINE = CommandLine(HANDLER)


def test_create_names_everything_and_logs_to_a_file() -> None:
    assert LINE.create(CID, bundle=Path("/b"), pid_file=Path("/p"), log_file=Path("/l")) == (
        "/usr/bin/crun",
        "--root=/run/x/crun",
        "--log=/l",
        "--log-format=json",
        "--debug",
        "create",
        "--bundle=/b",
        "--pid-file=/p",
        CID,
    )


def test_systemd_is_said_once_before_the_subcommand() -> None:
    argv = CommandLine(HANDLER, systemd_cgroup=True).start(CID)
    assert argv.count("--systemd-cgroup") == 1
    assert argv.index("--systemd-cgroup") < argv.index("start")


def test_every_subcommand_ends_with_the_id_or_the_signal() -> None:
    assert LINE.start(CID)[-2:] == ("start", CID)
    assert LINE.state(CID)[-2:] == ("state", CID)
    assert LINE.pause(CID)[-2:] == ("pause", CID)
    assert LINE.resume(CID)[-2:] == ("resume", CID)
    assert LINE.delete(CID, force=False)[-2:] == ("delete", CID)
    assert LINE.delete(CID, force=True)[-3:] == ("delete", "--force", CID)
    assert LINE.kill(CID, 15, all_processes=False)[-3:] == ("kill", CID, "15")
    assert LINE.kill(CID, 9, all_processes=True)[-4:] == ("kill", "--all", CID, "9")
    assert LINE.update(CID)[-3:] == ("update", "--resources=-", CID)
    paths = {"process_file": Path("/j"), "pid_file": Path("/p"), "log_file": Path("/l")}
    assert LINE.exec(CID, **paths)[-4:] == ("exec", "--process=/j", "--pid-file=/p", CID)


@pytest.mark.parametrize("number", [0, -1, 65, 9999])
def test_signals_that_do_not_exist(number: int) -> None:
    with pytest.raises(InvalidArgument):
        LINE.kill(CID, number, all_processes=False)


@given(st.text(max_size=200))
def test_no_id_becomes_an_option_or_a_path(cid: str) -> None:
    try:
        argv = LINE.start(cid)
    except InvalidArgument:
        return
    assert argv[-1] == cid
    assert not cid.startswith(("-", ".", "/"))
    assert "/" not in cid
    assert cid.isascii()
    assert cid.isprintable()


def line(message: str, level: str = "error") -> bytes:
    return json.dumps({"msg": message, "level": level, "time": "t"}).encode() + b"\n"


def test_the_message_is_what_the_errors_say_each_once() -> None:
    text = line("careful", "warning") + line("first") + line("second") + line("first")
    assert runtime_message(text) == "first; second"


def test_without_errors_other_words_are_better_than_none() -> None:
    assert runtime_message(b"panic: oh no\n\ngoroutine 1\n") == "panic: oh no; goroutine 1"
    assert runtime_message(line("careful", "warning")) == "careful"
    assert runtime_message(b"") == ""


@given(st.binary(max_size=5000))
def test_any_bytes_become_one_bounded_printable_line(text: bytes) -> None:
    message = runtime_message(text)
    assert len(message) <= MESSAGE_LIMIT_CHARS
    assert message.isprintable()


def test_the_end_of_too_many_words_is_kept() -> None:
    message = runtime_message(line("x" * 10_000 + " the cause"))
    assert message.startswith("...")
    assert message.endswith("the cause")
    assert len(message) == MESSAGE_LIMIT_CHARS


def test_only_errors_count_as_errors() -> None:
    assert has_error(line("careful", "warning") + line("bad"))
    assert not has_error(line("careful", "warning") + b"text that is no JSON\n")
    assert not has_error(b"")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("executable file `/bin/nope` not found in $PATH: No such file", CommandNotFound),
        ('exec: "/bin/nope": stat /bin/nope: no such file or directory', CommandNotFound),
        ("open executable: Permission denied", CommandNotFound),
        ("exec container process `/x`: Exec format error", CommandNotFound),
        ("the container `x` is not in `created` or `stopped` state", RuntimeBusy),
        ("cannot open `/run/x/exec.fifo`: No such file or directory", RuntimeBusy),
        ("cannot start an already running container", RuntimeBusy),
        ("container with given ID already exists", RuntimeBusy),
        ("cannot exec in a paused container (use --ignore-paused)", RuntimeBusy),
        ("writing file `memory.limit_in_bytes`: Device or resource busy", RuntimeBusy),
        ("unable to set memory limit to 4096 (current usage: 286720)", RuntimeBusy),
        ("mkdir `x`: No space left on device", ResourceExhausted),
        ("clone: Resource temporarily unavailable", ResourceExhausted),
        ("something nobody has seen before", RuntimeFailed),
    ],
)
def test_words_of_runtimes_have_classes(message: str, kind: type[Exception]) -> None:
    error = failure("create", "crun", CID, exit_status=1, message=message)
    assert type(error) is kind
    assert message in str(error)


def test_a_controller_left_on_version_2_has_its_remedy_in_the_error() -> None:
    message = "cgroups in hybrid mode not supported, drop all controllers from cgroupv2"
    error = failure("create", "crun", CID, exit_status=1, message=message)
    assert isinstance(error, RuntimeFailed)
    assert "mount -t cgroup -o hugetlb" in error.hint
    assert "podwright check" in error.hint


def test_a_silent_failure_is_still_told() -> None:
    error = failure("start", "runc", CID, exit_status=3, message="")
    assert "gave no reason" in str(error)
    assert "exit_status=3" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        "container does not exist",
        "error opening file `/run/x/status`: No such file or directory",
        "cannot open directory '/run/x': No such file or directory",
        "os: process already finished",
    ],
)
def test_gone_is_understood(message: str) -> None:
    assert says_gone(message)


def test_other_words_do_not_mean_gone() -> None:
    assert not says_gone("the container `x` is not in `created` or `stopped` state")
    assert not says_gone("permission denied")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (b'{"status": "running", "pid": 77, "id": "x"}', RuntimeState(RuntimeStatus.RUNNING, 77)),
        (b'{"status": "created", "pid": 5}', RuntimeState(RuntimeStatus.CREATED, 5)),
        (b'{"status": "stopped", "pid": 77}', RuntimeState(RuntimeStatus.STOPPED)),
        (b'{"status": "running", "pid": 1}', RuntimeState(RuntimeStatus.RUNNING)),
        (b'{"status": "running", "pid": -5}', RuntimeState(RuntimeStatus.RUNNING)),
        (b'{"status": "asleep"}', RuntimeState(RuntimeStatus.BROKEN)),
        (b"{", RuntimeState(RuntimeStatus.BROKEN)),
        (b"", RuntimeState(RuntimeStatus.BROKEN)),
    ],
)
def test_state(text: bytes, state: RuntimeState) -> None:
    assert parse_state(text) == state


CRUN_VERSION = "crun version 1.8.1\ncommit: f8\nspec: 1.0.0\n+SYSTEMD +SECCOMP +EBPF +YAJL\n"


def test_a_crun_without_features_is_known_by_its_version() -> None:
    info = describe(CRUN_VERSION, None, "crun")
    assert (info.name, info.version) == ("crun", "1.8.1")
    assert info.recursive_read_only
    assert info.idmap_mounts
    assert info.seccomp
    assert info.systemd_cgroup
    assert info.compiled_seccomp


def test_an_old_crun_without_its_libraries() -> None:
    info = describe("crun version 1.3\n-SYSTEMD\n", None, "crun")
    assert not info.recursive_read_only
    assert not info.seccomp
    assert not info.systemd_cgroup


def test_a_runtime_with_features_is_believed() -> None:
    features = {
        "mountOptions": ["ro", "rro"],
        "linux": {
            "namespaces": ["pid"],
            "seccomp": {"enabled": True},
            "cgroup": {"systemd": True, "v2": True},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"x": "y"},
    }
    info = describe("runc version 1.3.0\n", json.dumps(features).encode(), "runc")
    assert (info.name, info.version) == ("runc", "1.3.0")
    assert info.recursive_read_only
    assert info.idmap_mounts
    assert not info.user_namespaces
    assert info.seccomp
    assert info.systemd_cgroup
    assert not info.compiled_seccomp


def test_features_that_are_no_document_and_a_version_that_is_none() -> None:
    info = describe("surprise", b"{", "mine")
    assert (info.name, info.version, info.recursive_read_only) == ("mine", "unknown", False)


def test_version_numbers() -> None:
    assert version_numbers("1.1.5+ds1") == (1, 1, 5)
    assert version_numbers("1.10-rc2") > version_numbers("1.9")
    assert version_numbers("unknown") == ()
