import errno

import pytest

from sandbox.host.errors import (
    AlreadyExists,
    Busy,
    Denied,
    DiskFull,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PodwrightError,
    ResourceExhausted,
    Unavailable,
    from_os_error,
    map_errors,
    map_os_errors,
)
from sandbox.host.syscalls import errno_of


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound),
        (errno.ESRCH, NotFound),
        (errno.EEXIST, AlreadyExists),
        (errno.EBUSY, Busy),
        (errno.EPERM, Denied),
        (errno.EMFILE, ResourceExhausted),
        (errno.ENOSPC, DiskFull),
        (errno.E2BIG, InvalidArgument),
        (errno.EXDEV, Internal),
    ],
)
def test_an_errno_becomes_the_class_a_caller_can_act_on(number, kind):
    assert type(from_os_error(OSError(number, "x"), "cannot do it")) is kind


def test_a_message_names_the_object_and_the_text_for_clients_never_has_the_replay_line():
    error = from_os_error(
        FileNotFoundError(errno.ENOENT, "No such file", "/run/x"), "cannot open", hint="make it"
    )
    error.replay = "open /run/x --secret"
    assert str(error) == "cannot open: no such file [ENOENT] (path=/run/x); make it"


def test_mapping_keeps_the_cause_and_its_number():
    with pytest.raises(NotFound) as caught, map_os_errors("cannot read"):
        raise FileNotFoundError(errno.ENOENT, "gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert errno_of(caught.value) == errno.ENOENT
    assert errno_of(PodwrightError("no cause")) == 0


def test_mapping_by_table_leaves_our_own_errors_alone():
    with pytest.raises(Busy), map_errors({Exception: Unavailable}, "outer"):
        raise Busy("inner")
    with (
        pytest.raises(Unavailable, match="outer: too late"),
        map_errors({TimeoutError: Unavailable}, "outer"),
    ):
        raise TimeoutError("too late")


def test_busy_is_a_failed_precondition():
    assert issubclass(Busy, FailedPrecondition)
