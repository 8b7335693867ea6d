"""Packages of Debian, downloaded and unpacked with an apt configuration of their own.

The machine's sources, lists and package states are neither used nor changed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.kit.vm import recipe


class CannotBuild(Exception):
    """Debian's archive, or a tool, did not give what is needed."""


class Apt:
    """A private view of Debian's archive below `home`. Every method raises CannotBuild."""

    def __init__(self, home: Path, sources: Sequence[tuple[str, str]] = recipe.SOURCES) -> None:
        """Write the configuration and fetch the lists.

        Args:
            home: where they are kept.
            sources: address and suite of each archive.
        """
        self._home = home
        for part in ("lists/partial", "cache/archives/partial"):
            (home / part).mkdir(parents=True, exist_ok=True)
        self.sources = home / "sources.list"
        self.sources.write_text(
            "".join(
                f"deb [signed-by={recipe.KEYRING}] {url} {suite} main\n" for url, suite in sources
            )
        )
        self._run("apt-get", "-qq", "update")

    def unpack(self, package: str, into: Path) -> None:
        """Unpack a package ("name", "name/suite" or "name=version"); its scripts are not run."""
        folder = self._home / "debs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._run("apt-get", "-qq", "download", package, cwd=folder)
        (deb,) = folder.iterdir()
        into.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", deb, into], check=True)
        shutil.rmtree(folder)

    def resolve(self, package: str, suite: str, prefix: str) -> str:
        """ "name=version" of what the suite's `package` brings whose name begins with `prefix`.

        Raises:
            CannotBuild: nothing such.
        """
        text = self._run(
            "apt-get", "-qq", "-s", "--no-install-recommends", "-t", suite, "install", package
        )
        found = re.search(rf"^Inst ({re.escape(prefix)}\S*) \((\S+)", text, re.MULTILINE)
        if found is None:
            raise CannotBuild(f"{suite} has no {prefix}… for {package}")
        return f"{found[1]}={found[2]}"

    def _run(self, *argv: str, cwd: Path | None = None) -> str:
        options: Sequence[str] = (
            f"Dir::Etc::sourcelist={self.sources}",
            "Dir::Etc::sourceparts=-",
            f"Dir::State::lists={self._home / 'lists'}",
            f"Dir::Cache={self._home / 'cache'}",
            "Dir::State::status=/dev/null",
            "Acquire::Languages=none",
            "APT::Sandbox::User=root",
        )
        words = [argv[0], *(word for option in options for word in ("-o", option)), *argv[1:]]
        done = subprocess.run(words, cwd=cwd, check=False, capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"{' '.join(argv)}: {done.stderr.strip()[-1000:]}")
        return done.stdout
