"""A control group as a dictionary of files, with the kernel's own rules about what may be written.

Stands in for `CgroupLayout` where limits of one group are read and set.
"""

from sandbox.host.errors import InvalidArgument, NotFound

V1 = {
    "cpu.shares": "1024",
    "cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "-1",
    "memory.limit_in_bytes": "1000",
    "memory.memsw.limit_in_bytes": "1000",
    "memory.usage_in_bytes": "500",
    "memory.stat": "total_inactive_file 100",
    "cpuset.cpus": "0-1",
    "cpuset.mems": "0",
    "hugetlb.2MB.limit_in_bytes": "9223372036854771712",
    "hugetlb.2MB.rsvd.limit_in_bytes": "9223372036854771712",
}
V2 = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.high": "max",
    "memory.current": "500",
    "memory.stat": "inactive_file 100",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "hugetlb.2MB.max": "max",
}


class FakeGroup:
    """`written` records every write that was taken; `refuse` maps a file to values it refuses."""

    def __init__(self, version=1, refuse=None):
        self.version = version
        self.files = dict(V1 if version == 1 else V2)
        self.available = frozenset({"cpu", "memory", "cpuset", "hugetlb"})
        self.written = []
        self.refuse = refuse or {}
        self.pids = set()

    def read(self, path, controller, name):
        return self.files.get(name)

    def write(self, path, controller, name, value):
        if name not in self.files:
            raise NotFound(f"no file {name}")
        if value in self.refuse.get(name, ()) or not self._consistent({name: value}):
            raise InvalidArgument(f"cannot write {value} to {name}")
        self.files[name] = value
        self.written.append((name, value))

    def procs(self, path, *, recursive=False):
        return set(self.pids)

    def _consistent(self, change):
        """Version 1 wants memory and swap together never below memory."""
        files = self.files | change
        if self.version != 1:
            return True
        memory, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
        return int(files[memory]) <= int(files[both])
