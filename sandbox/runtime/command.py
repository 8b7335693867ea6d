"""The command line of crun and runc, and what they say when they fail: pure, text in and text out.

Both take the same global options and subcommands (runc(8), crun(1)). Values are always attached
with `=`, so nothing that follows an option can be taken for another one, and a container id is
refused unless it is of our own making.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.errors import CommandNotFound, RuntimeBusy, RuntimeFailed
from sandbox.host.errors import InvalidArgument, ResourceExhausted
from sandbox.runtime.books import needed_options
from sandbox.runtime.driver import RuntimeInfo, RuntimeState, RuntimeStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandbox.host.errors import PodwrightError
    from sandbox.runtime.sealed import SealedProgram
    from sandbox.settings import RuntimeHandler

#: Most of a runtime's words that go into one error message.
MESSAGE_LIMIT_CHARS: Final = 2048
#: Most of a log file or a standard error that is looked at.
LOG_LIMIT_BYTES: Final = 64 * 1024

#: Our ids are 64 lower-case hex digits; tests and people use shorter names of the same alphabet.
_CONTAINER_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")


def check_container_id(cid: str) -> str:
    """`cid` itself; InvalidArgument if it could be an option or a path."""
    if not _CONTAINER_ID.fullmatch(cid) or ".." in cid:
        raise InvalidArgument("container id is not one of ours", container=cid[:80])
    return cid


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Builds argument lists for one handler."""

    handler: RuntimeHandler
    systemd_cgroup: bool = False
    program: SealedProgram | None = None

    @property
    def path(self) -> Path:
        """What is run."""
        return self.handler.path if self.program is None else self.program.path

    def global_options(self, log_file: Path | None = None) -> tuple[str, ...]:
        """Options before the subcommand; without `log_file` errors go to standard error as JSON."""
        options = [f"--root={self.handler.root}"]
        if log_file is not None:
            options.append(f"--log={log_file}")
        options.append("--log-format=json")
        if self.systemd_cgroup:
            options.append("--systemd-cgroup")
        return (*options, *needed_options(self.handler), *self.handler.options)

    def _argv(self, *words: str, log_file: Path | None = None) -> tuple[str, ...]:
        return (str(self.path), *self.global_options(log_file), *words)

    def create(self, cid: str, *, bundle: Path, pid_file: Path, log_file: Path) -> tuple[str, ...]:
        """`create`: leaves the first process waiting."""
        return self._argv(
            "create",
            f"--bundle={bundle}",
            f"--pid-file={pid_file}",
            check_container_id(cid),
            log_file=log_file,
        )

    def start(self, cid: str) -> tuple[str, ...]:
        """`start`: runs the program of a created container."""
        return self._argv("start", check_container_id(cid))

    def state(self, cid: str) -> tuple[str, ...]:
        """`state`: prints a JSON document."""
        return self._argv("state", check_container_id(cid))

    def kill(self, cid: str, signal_number: int, *, all_processes: bool) -> tuple[str, ...]:
        """`kill`: signals the first process or all."""
        if not 0 < signal_number < 65:
            raise InvalidArgument("no such signal", container=cid, signal=signal_number)
        words = ["kill", *(["--all"] if all_processes else [])]
        return self._argv(*words, check_container_id(cid), str(signal_number))

    def delete(self, cid: str, *, force: bool) -> tuple[str, ...]:
        """`delete`: forgets a stopped container, with `--force` kills it first."""
        words = ["delete", *(["--force"] if force else [])]
        return self._argv(*words, check_container_id(cid))

    def exec(
        self,
        cid: str,
        *,
        process_file: Path,
        pid_file: Path,
        log_file: Path,
        console_socket: str = "",
    ) -> tuple[str, ...]:
        """`exec`: runs a process document and ends with its exit status."""
        return self._argv(
            "exec",
            f"--process={process_file}",
            f"--pid-file={pid_file}",
            *([f"--console-socket={console_socket}"] if console_socket else []),
            check_container_id(cid),
            log_file=log_file,
        )

    def update(self, cid: str) -> tuple[str, ...]:
        """`update` with the resources document on standard input."""
        return self._argv("update", "--resources=-", check_container_id(cid))

    def pause(self, cid: str) -> tuple[str, ...]:
        """`pause`: freezes every process."""
        return self._argv("pause", check_container_id(cid))

    def resume(self, cid: str) -> tuple[str, ...]:
        """`resume`: undoes `pause`."""
        return self._argv("resume", check_container_id(cid))

    def version(self) -> tuple[str, ...]:
        """`--version`."""
        return (str(self.path), "--version")

    def features(self) -> tuple[str, ...]:
        """`features`: a JSON document; crun before 1.8.6 does not know it."""
        return (str(self.path), "features")


class _LogLine(msgspec.Struct):
    """One JSON line of `--log-format=json`, the part we read."""

    msg: str = ""
    level: str = ""


_log_line: Final = msgspec.json.Decoder(_LogLine)


def runtime_message(text: bytes) -> str:
    """What a runtime complained about, from its log or standard error, oldest first.

    Lines that are not JSON (a hook's words, a panic) count too when nothing else is there. The end
    is kept where there is too much, since the last error is the one that ended the program.
    """
    errors: list[str] = []
    others: list[str] = []
    for raw in text[-LOG_LIMIT_BYTES:].splitlines():
        line = raw.strip()
        if not line:
            continue
        try:
            entry = _log_line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            others.append(line.decode("utf-8", "replace"))
            continue
        if entry.level in {"error", "fatal", "panic"} and entry.msg:
            if entry.msg not in errors:
                errors.append(entry.msg)
        elif entry.msg:
            others.append(entry.msg)
    message = "; ".join(part.strip() for part in errors or others)
    message = " ".join(_printable(message).split())
    if len(message) > MESSAGE_LIMIT_CHARS:
        message = "..." + message[3 - MESSAGE_LIMIT_CHARS :]
    return message


def has_error(log: bytes) -> bool:
    """Whether a runtime's JSON log tells of an error of its own."""
    for line in log[-LOG_LIMIT_BYTES:].splitlines():
        try:
            entry = _log_line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if entry.level in {"error", "fatal", "panic"}:
            return True
    return False


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    kind: type[PodwrightError]
    hint: str = ""


def _rule(pattern: str, kind: type[PodwrightError], hint: str = "") -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), kind, hint)


_EXHAUSTED: Final = (
    r"no space left on device|cannot allocate memory|too many open files"
    r"|resource temporarily unavailable|disk quota exceeded"
)

#: Words of crun 1.8 to 1.28 and runc 1.1 to 1.3 -> class and remedy; the first that fits wins.
_RULES: Final = (
    _rule(
        r"cgroups in hybrid mode not supported",
        RuntimeFailed,
        "a controller is left on cgroup v2 while others are on v1; mount it as v1, such as: "
        "mount -t cgroup -o hugetlb hugetlb /sys/fs/cgroup/hugetlb; see podwright check",
    ),
    _rule(
        r"executable file .*not found|exec: .*(no such file|permission denied|not found)"
        r"|open executable: |cannot find executable|exec format error",
        CommandNotFound,
        "check the container's command and the PATH of its image",
    ),
    _rule(
        r"not in .?(created|running|stopped).? .*state|cannot start an already running"
        r"|container .*is not running|is (already )?paused|container not running"
        r"|cannot exec (in )?a (stopped|paused) container|exec\.fifo.*no such file"
        r"|already exists|is not stopped|cannot delete container .* that is not stopped",
        RuntimeBusy,
    ),
    _rule(_EXHAUSTED, ResourceExhausted),
    _rule(
        r"unable to set memory limit|memory\.limit_in_bytes.*(busy|resource)",
        RuntimeBusy,
        "the limit is below what the container uses",
    ),
    _rule(r"device or resource busy", RuntimeBusy),
)

#: The container is not there at all: for kill and delete that is success.
_GONE: Final = re.compile(
    r"container .*does not exist|/status.?: no such file|cannot open directory .*no such file"
    r"|no such process|container not running|process already finished",
    re.IGNORECASE,
)


def says_exhausted(message: str) -> bool:
    """Whether a helper means that the machine has no more of something."""
    return re.search(_EXHAUSTED, message, re.IGNORECASE) is not None


def says_gone(message: str) -> bool:
    """Whether the runtime means that there is nothing (any more) to do this to."""
    return _GONE.search(message) is not None


def failure(
    operation: str, handler: str, cid: str, *, exit_status: int, message: str, replay: str = ""
) -> PodwrightError:
    """The error that stands for a runtime's failed call."""
    for rule in _RULES:
        if rule.pattern.search(message):
            kind, hint = rule.kind, rule.hint
            break
    else:
        kind, hint = RuntimeFailed, ""
    words = message or "it gave no reason"
    return kind(
        f"{handler} {operation} failed: {words}",
        hint=hint,
        replay=replay,
        container=cid,
        exit_status=exit_status,
    )


class _StateDocument(msgspec.Struct):
    """OCI runtime-spec state, the part we read."""

    status: str
    pid: int = 0


_state_document: Final = msgspec.json.Decoder(_StateDocument)


def parse_state(text: bytes) -> RuntimeState:
    """The answer of `state`; what cannot be understood is BROKEN."""
    try:
        document = _state_document.decode(text)
        status = RuntimeStatus(document.status)
    except (msgspec.DecodeError, ValueError):
        return RuntimeState(RuntimeStatus.BROKEN)
    pid = document.pid if status.alive and document.pid > 1 else 0
    return RuntimeState(status, pid)


class _Enabled(msgspec.Struct):
    enabled: bool = False


class _IdMap(msgspec.Struct):
    idmap: _Enabled = msgspec.field(default_factory=_Enabled)


class _FeatureCgroup(msgspec.Struct):
    systemd: bool = False


class _FeatureLinux(msgspec.Struct, rename="camel"):
    namespaces: list[str] = []
    seccomp: _Enabled = msgspec.field(default_factory=_Enabled)
    cgroup: _FeatureCgroup = msgspec.field(default_factory=_FeatureCgroup)
    mount_extensions: _IdMap = msgspec.field(default_factory=_IdMap)


class _Features(msgspec.Struct, rename="camel"):
    """OCI runtime-spec features.md, the part we read."""

    oci_version_max: str = ""
    mount_options: list[str] = []
    linux: _FeatureLinux = msgspec.field(default_factory=_FeatureLinux)


def parse_version(text: str, fallback_name: str) -> tuple[str, str]:
    """(name, version) of the first line of `--version`, such as `crun version 1.8.1`."""
    first = text.splitlines()[0] if text.strip() else ""
    match = re.match(r"(\S+) version:?\s+(\S+)", first)
    if match is None:
        return fallback_name, "unknown"
    return match.group(1).lower(), match.group(2).rstrip(",")


def version_numbers(version: str) -> tuple[int, ...]:
    """`1.8.1-rc2+ds1` -> (1, 8, 1); as much as is numeric."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def describe(version_text: str, features_text: bytes | None, fallback_name: str) -> RuntimeInfo:
    """What a program is and can do.

    Args:
        version_text: output of `--version`.
        features_text: output of `features`, or None where the program does not know it; then crun's
            version and its list of build options decide.
        fallback_name: name to use where the program does not tell its own.
    """
    name, version = parse_version(version_text, fallback_name)
    is_crun = name == "crun"
    if features_text is not None:
        try:
            features = msgspec.json.decode(features_text, type=_Features)
        except msgspec.DecodeError:
            features = None
        if features is not None:
            return RuntimeInfo(
                name=name,
                version=version,
                recursive_read_only="rro" in features.mount_options,
                idmap_mounts=features.linux.mount_extensions.idmap.enabled,
                user_namespaces="user" in features.linux.namespaces,
                seccomp=features.linux.seccomp.enabled,
                systemd_cgroup=features.linux.cgroup.systemd,
                compiled_seccomp=is_crun,
                runtime_spec=_major_minor(features.oci_version_max),
                raw=features_text.decode("utf-8", "replace"),
            )
    options = _build_options(version_text)
    numbers = version_numbers(version)
    return RuntimeInfo(
        name=name,
        version=version,
        # crun's NEWS: recursive mount options since 1.4, mappings for one mount since 1.4.3.
        recursive_read_only=is_crun and numbers >= (1, 4),
        idmap_mounts=is_crun and numbers >= (1, 4, 3),
        user_namespaces=True,
        seccomp="SECCOMP" in options,
        systemd_cgroup="SYSTEMD" in options,
        compiled_seccomp=is_crun and numbers >= (1, 0),
        raw=version_text,
    )


def _major_minor(version: str) -> tuple[int, int]:
    numbers = version_numbers(version)
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (1, 0)


def _build_options(version_text: str) -> frozenset[str]:
    words: Sequence[str] = version_text.split()
    return frozenset(word[1:] for word in words if word.startswith("+"))
