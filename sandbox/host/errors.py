"""What went wrong, classified by what the caller can do about it.

Every engine raises subclasses of these; `cri/status.py` is the one place that turns a class into a
gRPC code. A message is lower case, names the object and has no full stop; the remedy goes into
`hint`, a command line that reproduces the failure into `replay` (logged once, never sent to the
client), other facts into keyword fields.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class PodwrightError(Exception):
    """Base of every failure this project raises on purpose.

    Attributes:
        message: what failed, naming the object; safe to send to a client.
        hint: the next step for a person, or empty; safe to send.
        replay: a command line that reproduces the failure, or empty; for the daemon's log only.
        fields: facts for the log and the message (`path=`, `container=`, `exit_status=` ...).
        stage: the step of a teardown that failed, or empty; for `podwright status`.
    """

    stage = ""

    def __init__(
        self, message: str, *, hint: str = "", replay: str = "", **fields: str | int | None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.replay = replay
        self.fields: Mapping[str, str | int] = _present(fields)

    def __str__(self) -> str:
        """The text a client may see: message, fields, hint; never the replay line."""
        parts = [self.message]
        if self.fields:
            parts.append("(" + ", ".join(f"{k}={v}" for k, v in self.fields.items()) + ")")
        text = " ".join(parts)
        return f"{text}; {self.hint}" if self.hint else text


def _present(fields: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {key: value for key, value in fields.items() if value is not None}


class InvalidArgument(PodwrightError):
    """The request itself is wrong; repeating it unchanged cannot help."""


class NotFound(PodwrightError):
    """The named object does not exist."""


class AlreadyExists(PodwrightError):
    """An object of that name exists and is not the one asked for."""


class FailedPrecondition(PodwrightError):
    """The object is in the wrong state for this; change the state, then repeat."""


class Busy(FailedPrecondition):
    """Something else holds the object at the moment (EBUSY); repeat later."""


class Denied(PodwrightError):
    """The kernel or a registry refused for lack of permission."""


class Unauthenticated(PodwrightError):
    """Credentials are missing or were not accepted."""


class Unavailable(PodwrightError):
    """A part that is needed does not answer now; repeating later may succeed."""


class DeadlineExceeded(PodwrightError):
    """The time given was not enough."""


class Cancelled(PodwrightError):
    """The caller, or a newer request, called it off."""


class ResourceExhausted(PodwrightError):
    """Disk, memory, descriptors, processes or a stated limit ran out."""


class DiskFull(ResourceExhausted):
    """A file system or a quota of one is full: what is not needed on the disk may be in the way."""


class Corrupt(PodwrightError):
    """Stored or received bytes are not what they must be (DATA_LOSS)."""


class Unsupported(PodwrightError):
    """This host, runtime or version cannot do that."""


class Internal(PodwrightError):
    """A fault of ours, or of a helper program, that the caller can do nothing about."""


#: errno(3) -> class. What is not listed here becomes Internal.
ERRNO_CLASS: Mapping[int, type[PodwrightError]] = {
    errno.ENOENT: NotFound,
    errno.ESRCH: NotFound,
    errno.ENODEV: Unsupported,
    errno.EEXIST: AlreadyExists,
    errno.EBUSY: Busy,
    errno.ETXTBSY: Busy,
    errno.EPERM: Denied,
    errno.EACCES: Denied,
    errno.EROFS: Denied,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.E2BIG: InvalidArgument,
    errno.ERANGE: InvalidArgument,
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EAGAIN: ResourceExhausted,
    errno.ENOSYS: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.ETIMEDOUT: DeadlineExceeded,
    errno.EIO: Corrupt,
}


def from_os_error(
    error: OSError, what: str, *, hint: str = "", **fields: str | int | None
) -> PodwrightError:
    """The failure that stands for `error`; raise it `from error`."""
    number = error.errno if error.errno is not None else 0
    name = errno.errorcode.get(number, str(number))
    reason = (error.strerror or str(error)).lower()
    path = error.filename if isinstance(error.filename, str) else None
    if path is not None and "path" not in fields:
        fields = {**fields, "path": path}
    kind = ERRNO_CLASS.get(number, Internal)
    failure = kind(f"{what}: {reason} [{name}]", hint=hint)
    failure.fields = _present(fields)
    return failure


@contextmanager
def map_os_errors(what: str, *, hint: str = "", **fields: str | int | None) -> Iterator[None]:
    """Turn an OSError of the block into the class its errno stands for, cause kept."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, what, hint=hint, **fields) from error


@contextmanager
def map_errors(
    table: Mapping[type[Exception], type[PodwrightError]], what: str, **fields: str | int | None
) -> Iterator[None]:
    """Turn foreign exceptions into ours at a border, by `table`, first match wins, cause kept."""
    try:
        yield
    except PodwrightError:
        raise
    except tuple(table) as error:
        kind = next(ours for theirs, ours in table.items() if isinstance(error, theirs))
        detail = str(error) or type(error).__name__
        failure = kind(f"{what}: {detail}")
        failure.fields = _present(fields)
        raise failure from error
