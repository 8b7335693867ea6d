"""A directory of the host that a hostile image points at, and whether anything touched it.

A file that was made and removed again moves the directory's times, so no watcher is needed: two
equal pictures mean that nothing happened in between.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

Picture = dict[str, tuple[int, ...]]


@dataclass
class Canary:
    """`root` with a few files; `assert_untouched` compares it and the host's own directories."""

    root: Path
    before: Picture = field(default_factory=dict)

    @classmethod
    def placed(cls, root: Path) -> Canary:
        """Make the directory and remember how it is."""
        for name in ("etc", "dev", "dev/pts", "dev/shm", "run", "proc", "sys", "work", "deep/er"):
            (root / name).mkdir(parents=True)
        for name in ("etc/passwd", "etc/hosts", "etc/mtab", "etc/resolv.conf", "file", "dev/null"):
            (root / name).write_text("of the host\n")
        (root / "etc/hosts").chmod(0o640)
        canary = cls(root)
        canary.before = canary.picture()
        return canary

    def picture(self) -> Picture:
        """Everything below the root, and the directories of the host where images point to."""
        found = {str(path): _about(path) for path in (self.root, *self.root.rglob("*"))}
        for name in ("/", "/etc", "/root", "/usr", "/usr/bin", "/home", "/opt", "/srv"):
            found[name] = _about(Path(name))
        for name in ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname"):
            if Path(name).exists():
                found[name] = _about(Path(name))
        return found

    def assert_untouched(self, *, but: str = "") -> None:
        """Nothing was made, removed, written, or given another owner, mode or time.

        Args:
            but: the name of a directory in the root that may have been made, as long as it is empty
                and nothing is mounted on it; it is removed.
        """
        now = self.picture()
        extra = self.root / but
        if but and now.pop(str(extra), None) is not None:
            assert extra.is_dir()
            extra.rmdir()
            # Its times have moved, for this and all later comparisons; all else must be as ever.
            now[str(self.root)] = _about(self.root)
            *same, _, _ = now[str(self.root)]
            assert same == list(self.before[str(self.root)][:-2])
            self.before[str(self.root)] = now[str(self.root)]
        assert now.keys() == self.before.keys(), now.keys() ^ self.before.keys()
        changed = [name for name, about in now.items() if about != self.before[name]]
        assert not changed, f"touched: {changed}"


def _about(path: Path) -> tuple[int, ...]:
    about = os.lstat(path)
    return (
        *(about.st_ino, about.st_mode, about.st_uid, about.st_gid, about.st_nlink),
        *(about.st_size, about.st_mtime_ns, about.st_ctime_ns),
    )
