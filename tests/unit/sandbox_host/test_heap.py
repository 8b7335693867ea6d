"""One heap for all threads, as the C library itself tells (malloc_info(3)); giving it back."""

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


#: Holds every second of many small pieces, so that what is free lies between what is in use.
_HOLES = """
import ctypes, re
from sandbox.host.heap import give_back, one_heap

def resident_kib():
    return int(re.search(r"^RssAnon:\\s+(\\d+)", open("/proc/self/status").read(), re.M)[1])

one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
pieces = [libc.malloc(ctypes.c_size_t(32 * 1024)) for _ in range(512)]
for piece in pieces:
    ctypes.memset(piece, 1, 32 * 1024)
for piece in pieces[::2]:
    libc.free(piece)
before = resident_kib()
assert give_back()
print(before - resident_kib())
"""


def test_what_is_free_between_what_is_in_use_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) > 4096
