"""One heap for all threads, as the C library itself tells (malloc_info(3))."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Eight threads that hold memory at the same time, and then the number of heaps there are.
_PROGRAM = """
import ctypes, sys, tempfile, threading
from sandbox.host.heap import one_heap

assert sys.argv[1] == "several" or one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.fopen.restype = ctypes.c_void_p
met = threading.Barrier(8)

def hold():
    libc.malloc(ctypes.c_size_t(100))
    met.wait()

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as told:
    stream = ctypes.c_void_p(libc.fopen(told.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(told.read().count(b"<heap nr="))
"""


@pytest.mark.parametrize("how", ["one", "several"])
def test_threads_share_one_heap_where_it_is_asked_for(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how], check=True, capture_output=True, text=True
    )
    assert (int(done.stdout) == 1) == (how == "one")
