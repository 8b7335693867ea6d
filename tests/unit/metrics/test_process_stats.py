"""What processes hold open, counted on this very process."""

import os
import socket

from metrics.process_stats import open_files_limit, read_processes


def test_descriptors_and_sockets_of_this_process():
    before = read_processes([os.getpid()], os.getpid())
    one, other = socket.socketpair()
    with one, other:
        after = read_processes([os.getpid()], os.getpid())
    assert after.file_descriptors == before.file_descriptors + 2
    assert after.sockets == before.sockets + 2


def test_processes_that_are_gone_count_nothing():
    stats = read_processes([4_000_000], 4_000_000)
    assert (stats.file_descriptors, stats.sockets, stats.open_files_soft) == (0, 0, None)


def test_the_soft_limit(tmp_path):
    limits = tmp_path / "7" / "limits"
    limits.parent.mkdir()
    limits.write_text(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max processes             100                  200                  processes \n"
        "Max open files            1024                 524288               files     \n"
    )
    assert open_files_limit(7, proc=tmp_path) == 1024
    limits.write_text("Max open files            unlimited            unlimited            files\n")
    assert open_files_limit(7, proc=tmp_path) is None
    assert open_files_limit(0, proc=tmp_path) is None
    assert open_files_limit(8, proc=tmp_path) is None
