"""The process of a container: argv, environment, working directory, limits, OOM score.

Request and image are merged as Docker does it, because image authors test against Docker. The two
are not trusted alike: a malformed piece of the *request* is refused, a malformed environment
entry of the *image* is dropped (images with a stray entry exist and run elsewhere). Nothing of
the daemon's own environment gets in, whatever the image's entries look like.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument
from sandbox.spec.paths import clean_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandbox import oci
    from sandbox.model import ContainerConfig, ImageDefaults, LinuxResources

#: What every runtime of the field sets where the image has no PATH.
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: execve(2): one string including its zero (MAX_ARG_STRLEN, 32 pages), and the most that all of
#: them may take (three quarters of _STK_LIM, fs/exec.c). Past these the kernel says E2BIG after
#: the container was made; here it is said before.
STRING_LIMIT_BYTES: Final = 131072
TOTAL_LIMIT_BYTES: Final = 6 * 1024 * 1024

#: proc(5): range of oom_score_adj.
OOM_SCORE_ADJ_RANGE: Final = (-1000, 1000)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
#: getrlimit(2).
_RLIMITS: Final = frozenset(
    "RLIMIT_" + name
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE"),
        *("NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)


def arguments(config: ContainerConfig, image: ImageDefaults) -> tuple[str, ...]:
    """What is executed.

    `command` replaces the image's entrypoint *and* its cmd; `args` replace only the cmd.

    Raises:
        InvalidArgument: nothing to execute, an empty first word, a NUL, or too long for execve.
    """
    if config.command:
        argv = (*config.command, *config.args)
    else:
        argv = (*image.entrypoint, *(config.args or image.cmd))
    if not argv:
        raise InvalidArgument(
            "no command specified", hint="set command or args, or use an image that has them"
        )
    if not argv[0]:
        raise InvalidArgument("no command specified: the first word is empty")
    check_strings(argv, "an argument")
    return argv


def environment(config: ContainerConfig, image: ImageDefaults, *, hostname: str) -> tuple[str, ...]:
    """NAME=value entries, each name once, later sources winning in the place of the earlier.

    Sources in order: PATH, HOSTNAME, TERM=xterm when there is a terminal, the image, the request.
    HOME is left to the OCI runtime, which sets it from the passwd file it sees.

    Raises:
        InvalidArgument: a malformed entry in the request, or too much for execve.
    """
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        values["TERM"] = "xterm"
    for entry in image.env:
        name, equals, value = entry.partition("=")
        if equals and name and "\0" not in value and not _CONTROL.search(name):
            values[name] = value
    for name, value in config.envs:
        if not name or "=" in name or _CONTROL.search(name):
            raise InvalidArgument(
                f"environment variable has an unusable name: {name[:64]!a}",
                hint="a name is not empty and has no '=' and no control character",
            )
        if "\0" in value:
            # Only the name: values are secrets often enough.
            raise InvalidArgument(f"environment variable {name[:64]!a} has a NUL in its value")
        values[name] = value
    entries = tuple(f"{name}={value}" for name, value in values.items())
    check_strings(entries, "an environment variable")
    return entries


def check_strings(strings: Sequence[str], what: str) -> None:
    """Refuse what execve(2) would refuse later.

    Raises:
        InvalidArgument: a NUL, no valid UTF-8, one string or all of them too long.
    """
    total = 0
    for text in strings:
        if "\0" in text:
            raise InvalidArgument(f"{what} contains a NUL")
        try:
            size_bytes = len(text.encode()) + 1
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{what} is not valid UTF-8") from error
        if size_bytes > STRING_LIMIT_BYTES:
            raise InvalidArgument(f"{what} is longer than {STRING_LIMIT_BYTES - 1} bytes")
        total += size_bytes + 8  # and its pointer
    if total > TOTAL_LIMIT_BYTES:
        raise InvalidArgument(f"{what}: all of them take more than {TOTAL_LIMIT_BYTES} bytes")


def working_directory(config: ContainerConfig, image: ImageDefaults) -> str:
    """Request, else image, else the root; the runtime makes it where it is missing.

    An image's relative WORKDIR counts from the root, as builders mean it; a relative one in the
    request is refused. Paths by way of a process in /proc are refused: an inherited descriptor of
    the runtime behind /proc/self/fd was a way out of the container (CVE-2024-21626).

    Raises:
        InvalidArgument: see above, and what `clean_path` refuses.
    """
    text, what = config.working_dir, "the working directory"
    if not text:
        text, what = image.working_dir or "/", "the image's working directory"
        if not text.startswith("/"):
            text = "/" + text
    path = clean_path(text, what)
    names = path.split("/")[1:]
    if names[:2] == ["dev", "fd"] or (
        names[0] == "proc"
        and len(names) > 1
        and (names[1] in ("self", "thread-self") or names[1].isdecimal())
    ):
        raise InvalidArgument(f"{what} leads through a process's own files: {path[:128]!a}")
    return path


def oom_score_adj(resources: LinuxResources | None, *, floor: int) -> int:
    """The score for a container: what was asked for, but not below what the daemon may set.

    Always stated, because a container would otherwise inherit the daemon's own protection.

    Raises:
        InvalidArgument: outside -1000 to 1000.
    """
    wanted = 0 if resources is None else resources.oom_score_adj
    lowest, highest = OOM_SCORE_ADJ_RANGE
    if not lowest <= wanted <= highest:
        raise InvalidArgument(f"oom_score_adj is not in the range {lowest} to {highest}: {wanted}")
    return max(wanted, floor)


def check_rlimits(limits: Iterable[oci.Rlimit]) -> tuple[oci.Rlimit, ...]:
    """The configured limits, checked: known, each once, soft not above hard.

    Raises:
        InvalidArgument: otherwise.
    """
    seen: dict[str, oci.Rlimit] = {}
    for limit in limits:
        if limit.type not in _RLIMITS or limit.type in seen:
            raise InvalidArgument(f"rlimit is unknown or given twice: {limit.type[:32]!a}")
        if not 0 <= limit.soft <= limit.hard < 2**64:
            raise InvalidArgument(
                f"rlimit {limit.type} needs 0 <= soft <= hard: soft {limit.soft}, hard {limit.hard}"
            )
        seen[limit.type] = limit
    return tuple(seen.values())
