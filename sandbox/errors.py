"""What can go wrong with pods, containers and the programs that run them.

Each class sits under one of `sandbox.host.errors`, which says what the caller can do about it; the
classes here only let a caller tell apart what he must treat differently.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PodwrightError,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The kubelet recognises failures of image volumes by the beginning of the text (KEP-4639).
IMAGE_VOLUME_PREFIX: Final = "ImageVolumeMountFailed"


class PodNotFound(NotFound):
    """No pod has that id."""


class ContainerNotFound(NotFound):
    """No container has that id."""


class PodNotReady(FailedPrecondition):
    """The pod has been stopped, or its pause process is gone."""


class ContainerNotRunning(FailedPrecondition):
    """The container has no running process to do this with."""


class RuntimeFailed(Internal):
    """The OCI runtime refused or broke; the message carries its own words."""


class RuntimeBusy(FailedPrecondition):
    """The OCI runtime says that the container is in the wrong state, or the kernel says EBUSY."""


class RuntimeMissing(Unsupported):
    """The OCI runtime's program, or conmon, is not installed where the configuration says."""


class RuntimeTimeout(DeadlineExceeded):
    """The OCI runtime or conmon did not finish in the time it was given, and was killed."""


class CommandNotFound(InvalidArgument):
    """The program to run does not exist in the container's file system, or is not executable."""


class ExecTimeout(DeadlineExceeded):
    """The command of an exec was still running when its time was over; it was killed."""


class MonitorFailed(Internal):
    """conmon ended without starting the container."""


class MonitorGone(Unavailable):
    """The container's conmon is dead or does not answer."""


class LogPathRefused(InvalidArgument):
    """The container's log path is not a place where a log may be written."""


@contextmanager
def image_volume(image: str, container_path: str) -> Iterator[None]:
    """Have a failure of the block begin as the kubelet expects it, and name the volume.

    Its class stays: a missing image is still NotFound, a full disk still ResourceExhausted.
    """
    try:
        yield
    except PodwrightError as error:
        if not error.message.startswith(IMAGE_VOLUME_PREFIX):
            error.message = f"{IMAGE_VOLUME_PREFIX}: {error.message}"
            error.fields = {"image": image, "container_path": container_path, **error.fields}
        raise
