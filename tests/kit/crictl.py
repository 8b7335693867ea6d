"""The real crictl against a node: what a person at the machine has in hand."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from tests.kit.faults import PATIENCE_S

_TOP: Final = Path(__file__).parents[2]


def cri_tools() -> Path:
    """Where hack/lib.sh puts crictl: it says so itself, or it is the place for root.

    Raises:
        FileNotFoundError: it is not built yet.
    """
    version = (_TOP / "hack/versions/cri-tools").read_text().strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "podwright")
    place = Path(os.environ.get("cri_tools", cache / f"cri-tools-{version}"))  # noqa: SIM112 - the script's name for it
    if not (place / "crictl").exists():
        raise FileNotFoundError(f"no crictl in {place}: hack/test and hack/critest build it")
    return place


class CrictlFailed(Exception):
    """The program ended with a failure; the text is what it wrote to standard error."""


class Crictl:
    """crictl for one endpoint, with a configuration of its own instead of the machine's."""

    def __init__(self, socket: Path, work: Path) -> None:
        """Write the configuration.

        Args:
            socket: the daemon's.
            work: a directory for files given to crictl.
        """
        self._work = work
        config = work / "crictl.yaml"
        config.write_text(
            f"runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\n"
            f"timeout: {int(PATIENCE_S)}\n"
        )
        self._head = [str(cri_tools() / "crictl"), "--config", str(config)]

    def argv(self, *words: str | Path) -> list[str]:
        """The whole command line."""
        return [*self._head, *map(str, words)]

    def run(self, *words: str | Path, stdin: str = "") -> str:
        """Standard output. Raises CrictlFailed."""
        return self.both(*words, stdin=stdin)[0]

    def both(self, *words: str | Path, stdin: str = "") -> tuple[str, str]:
        """Standard output and standard error. Raises CrictlFailed."""
        done = subprocess.run(
            self.argv(*words),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        if done.returncode:
            raise CrictlFailed(f"{done.stderr}{done.stdout}")
        return done.stdout, done.stderr

    def json(self, *words: str | Path) -> dict[str, object]:
        """Standard output as the JSON object it must be."""
        value = json.loads(self.run(*words))
        assert isinstance(value, dict)
        return value

    def file(self, name: str, document: Mapping[str, object]) -> Path:
        """A JSON file for crictl to read."""
        path = self._work / name
        path.write_text(json.dumps(document))
        return path

    @contextlib.contextmanager
    def background(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """The program with pipes; killed at the end of the block if it still runs."""
        process = subprocess.Popen(
            self.argv(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def pipe_of(pipe: IO[str] | None) -> IO[str]:
    """A pipe that `Crictl.background` has certainly opened."""
    assert pipe is not None
    return pipe
