"""A mkfs.erofs that reads tar archives (`--tar`, since 1.7), for comparison with our index writer.

Debian 12's is 1.5. Debian 13's is unpacked beside it with the libraries that it needs, and run with
their own loader; nothing of it is installed.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.kit.vm.debs import Apt, CannotBuild

HOME: Final = Path(os.environ.get("PODWRIGHT_EROFS_HOME", "/var/cache/podwright/erofs-utils"))
SOURCES: Final = (("http://deb.debian.org/debian", "trixie"),)
#: mkfs.erofs and what `ldd` says it needs.
PACKAGES: Final = (
    *("erofs-utils", "libc6", "libdeflate0", "liblz4-1", "liblzma5", "libpcre2-8-0"),
    *("libselinux1", "libuuid1", "libxxhash0", "libzstd1", "zlib1g"),
)


@functools.cache
def mkfs_erofs() -> tuple[tuple[str, ...], str]:
    """The words that start one which knows `--tar`; or none, and why there is none."""
    installed = shutil.which("mkfs.erofs")
    if installed and _knows_tar((installed,)):
        return (installed,), ""
    try:
        unpacked = _unpacked()
    except (CannotBuild, OSError) as error:
        return (), f"no mkfs.erofs that knows --tar: {error}"
    library = unpacked / "usr/lib/x86_64-linux-gnu"
    words = (
        str(unpacked / "usr/lib64/ld-linux-x86-64.so.2"),
        *("--library-path", str(library), str(unpacked / "usr/bin/mkfs.erofs")),
    )
    return (words, "") if _knows_tar(words) else ((), f"{unpacked} has none that knows --tar")


def _knows_tar(words: tuple[str, ...]) -> bool:
    said = subprocess.run([*words, "--help"], check=False, capture_output=True, text=True)
    return "--tar" in said.stdout + said.stderr


def _unpacked() -> Path:
    """The directory of Debian 13's; made when it is not there."""
    HOME.mkdir(parents=True, exist_ok=True)
    made = HOME / "trixie"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made
        with tempfile.TemporaryDirectory(prefix="making-", dir=HOME) as name:
            apt, root = Apt(Path(name) / "apt", SOURCES), Path(name) / "root"
            for package in PACKAGES:
                apt.unpack(package, root)
            root.rename(made)
    return made
