"""How strace's lines become calls, interrupted ones as well."""

from __future__ import annotations

from tests.kit.strace import calls_of

TRACE = """\
10 1700000000.000001 openat(AT_FDCWD</x>, "/x/a", O_RDONLY) = 3</x/a>
10 1700000000.000002 write(3</x/a>, ""..., 512 <unfinished ...>
11 1700000000.000003 fsync(4</x>)                = -1 EIO (Input/output error)
10 1700000000.000004 <... write resumed>)        = 512
12 1700000000.000005 +++ exited with 0 +++
13 1700000000.000006 syncfs(5</x> <unfinished ...>
"""


def test_calls_are_put_together_and_know_what_was_over_before_them() -> None:
    calls = calls_of(TRACE)
    assert [(c.thread, c.name, c.result) for c in calls] == [
        (10, "openat", 3),
        (11, "fsync", -1),
        (10, "write", 512),
    ]
    opened, failed, written = calls
    assert written.arguments.startswith("3</x/a>")
    assert opened.ended < written.began < failed.began < written.ended
