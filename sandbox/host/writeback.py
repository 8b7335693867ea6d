"""Having written pages go to the disk while more are written, so that a later fsync finds few."""

from __future__ import annotations

import ctypes
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.sync_file_range.restype = ctypes.c_int
#: SYNC_FILE_RANGE_WRITE, linux/fs.h: begin, and wait for nothing.
_WRITE: Final = 2


def begin_writeback(fd: int, offset: int, size: int) -> None:
    """Ask the kernel to begin writing these bytes of the file out.

    Nothing more than a wish: it promises nothing about the disk (sync_file_range(2), "Warning"),
    and what goes wrong is told by the fsync that must follow.
    """
    _libc.sync_file_range(fd, offset, size, _WRITE)
