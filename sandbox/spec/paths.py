"""The one check for every path that goes into a document.

Paths are normalised by their text alone (no symbolic link is followed; in a container that is the
OCI runtime's part, which does it inside the container's root).
"""

from __future__ import annotations

import posixpath
from typing import Final

from sandbox.host.errors import InvalidArgument

#: PATH_MAX and NAME_MAX of <linux/limits.h>, less the terminating zero of the first. Bounded
#: here, not by the runtime: very long bind sources once overflowed a length field in one
#: (CVE-2021-43784).
PATH_LIMIT_BYTES: Final = 4095
NAME_LIMIT_BYTES: Final = 255


def clean_path(path: str, what: str) -> str:
    """`path` normalised: one leading slash, no `.`, `..`, doubled or trailing slash.

    Args:
        path: an absolute path.
        what: its role, for the message.

    Raises:
        InvalidArgument: empty, relative, with NUL or newline, not UTF-8, or too long for the
        kernel.
    """
    shown = ascii(path if len(path) <= 128 else path[:125] + "...")
    if not path.startswith("/"):
        raise InvalidArgument(f"{what} is not an absolute path: {shown}")
    if "\0" in path or "\n" in path:
        raise InvalidArgument(f"{what} contains a NUL or a newline: {shown}")
    try:
        raw = path.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} is not valid UTF-8: {shown}") from error
    longest = max(len(name) for name in raw.split(b"/"))
    if len(raw) > PATH_LIMIT_BYTES or longest > NAME_LIMIT_BYTES:
        raise InvalidArgument(f"{what} is longer than the kernel allows: {shown}")
    # normpath keeps exactly two leading slashes (POSIX lets them mean something; Linux does not).
    return "/" + posixpath.normpath(path).lstrip("/")


def is_at_or_below(path: str, top: str) -> bool:
    """Whether cleaned `path` is `top` or lies under it."""
    return path == top or top == "/" or path.startswith(top + "/")


def depth(path: str) -> int:
    """How many names a cleaned path has; 0 for the root."""
    return 0 if path == "/" else path.count("/")
