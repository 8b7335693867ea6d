"""Reading the files of a group; that they are kept open is tried on the kernel's own."""

from metrics.cgroup_files import read_once


def test_one_look_reads_a_file_once_and_a_missing_one_too():
    asked = []

    def read(controller, name):
        asked.append((controller, name))
        return None if name == "none" else f"{controller} {name} {len(asked)}".encode()

    once = read_once(read)
    assert once("memory", "stat") == once("memory", "stat") == b"memory stat 1"
    assert once("cpu", "stat") == b"cpu stat 2"
    assert once("cpu", "none") is once("cpu", "none") is None
    assert len(asked) == 3
    assert read_once(read)("memory", "stat") == b"memory stat 4", "the next look reads anew"
