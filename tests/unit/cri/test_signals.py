import signal

import pytest

from cri.signals import parse_signal, signal_name
from sandbox.host.errors import InvalidArgument

#: int() and str.isdigit() both take it for 15.
ARABIC_15 = chr(0x661) + chr(0x665)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        ("15", 15),
        (" SIGKILL ", 9),
        ("SIGIOT", 6),
        ("SIGCLD", 17),
        ("SIGPOLL", 29),
        ("SIGSTKFLT", 16),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMIN+15", 49),
        ("SIGRTMINPLUS3", 37),
        ("SIGRTMAX-14", 50),
        ("SIGRTMAXMINUS14", 50),
        ("SIGRTMAX", 64),
        ("64", 64),
    ],
)
def test_the_usual_spellings(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65",
        "-1",
        "SIG",
        "SIGNOPE",
        "SIGRTMIN-1",
        "SIGRTMAX+1",
        "SIGRTMIN+31",
        "1_5",
        ARABIC_15,
    ],
)
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(InvalidArgument, match="not a signal"):
        parse_signal(text)


@pytest.mark.parametrize("number", [*range(1, 32), *range(34, 65)])
def test_every_signal_has_a_name_that_reads_back(number):
    assert parse_signal(signal_name(number)) == number


def test_names_are_those_of_the_kernel():
    assert [signal_name(n) for n in (signal.SIGHUP, 34, 35, 49, 50, 63, 64, 32, 0)] == [
        "SIGHUP", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX-1", "SIGRTMAX",
        "", "",
    ]  # fmt: skip
