"""Programs that stand before crun, runc, conmon and the CNI plugins and do what a test orders.

Each is a shell script named like the program it stands for, because the daemon finds what it left
running by that name. Without an order it becomes the real program. An order is a file that the next
run of the program claims by renaming it, so it counts once. Who says that it stands at the gate has
the gate open already, or else it could be opened before anybody waits at it:

    faults.order("crun", "create", "hold-after")      # the real work, then wait at a gate
    ...RunPodSandbox...
    faults.wait_reached("crun", "create")             # it stands at the gate now
    faults.release("crun", "create")                  # and goes on

| order         | what happens                                                             |
|---------------|--------------------------------------------------------------------------|
| hold-before   | waits at the gate, then the real work                                    |
| hold-after    | the real work, then waits at the gate, then ends with the real status    |
| fail-before   | complains and fails, nothing was done                                    |
| fail-after    | the real work, then complains and fails                                  |
| kill-before   | dies of SIGKILL, nothing was done                                        |
| kill-after    | the real work, then dies of SIGKILL                                      |
| garbage       | prints what is no answer, and succeeds                                   |
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from tests.kit.registry import SLOWNESS

Order = Literal[
    "hold-before",
    "hold-after",
    "fail-before",
    "fail-after",
    "kill-before",
    "kill-after",
    "garbage",
]

#: Long enough for a busy machine; who waits that long has failed anyway.
PATIENCE_S: Final = 60.0 * SLOWNESS

_RUNTIME_VERBS: Final = "create start kill delete state exec update features pause resume list"

_SCRIPT: Final = """\
#!/bin/sh
# Stands before {real}; see tests/kit/faults.py.
verb={verb}
if [ -z "$verb" ]; then
  for word in "$@"; do
    case " {verbs} " in *" $word "*) verb=$word; break ;; esac
  done
fi
order="{control}/{name}.$verb"
[ -e "$order" ] || exec {real} "$@"
read -r what < "$order"
mv "$order" "$order.taken" 2>/dev/null || exec {real} "$@"
gate() {{
  exec 9<>"$order.gate"
  : > "$order.reached"
  read -r _ <&9
  exec 9<&-
}}
complain() {{
  echo '{{"cniVersion":"1.0.0","code":100,"msg":"ordered to fail"}}'
  echo 'ordered to fail' >&2
  exit 1
}}
case $what in
  hold-before) gate; exec {real} "$@" ;;
  hold-after) {real} "$@"; status=$?; gate; exit $status ;;
  fail-before) complain ;;
  fail-after) {real} "$@" > /dev/null; complain ;;
  kill-before) kill -KILL $$ ;;
  kill-after) {real} "$@" > /dev/null; kill -KILL $$ ;;
  garbage) echo 'this is {{ no answer'; exit 0 ;;
esac
"""


class Faults:
    """The stand-ins of one node and the orders given to them."""

    def __init__(self, root: Path) -> None:
        self._control = root / "control"
        self._control.mkdir()
        self.programs = root / "programs"
        self.programs.mkdir()

    def stand_in(self, name: str, real: Sequence[str], *, verb: str = "", folder: str = "") -> Path:
        """A stand-in for the program `real`; its path.

        Args:
            name: its file name.
            real: the program, perhaps with words before it that lead into a namespace.
            verb: shell text for what it is asked to do; empty: the first argument that is one of
                the OCI runtimes' verbs.
            folder: a directory of its own, for programs that are looked up by directory.
        """
        place = self.programs / folder if folder else self.programs
        place.mkdir(exist_ok=True)
        path = place / name
        path.write_text(
            _SCRIPT.format(
                name=name,
                real=" ".join(real),
                verb=verb,
                verbs=_RUNTIME_VERBS,
                control=self._control,
            )
        )
        path.chmod(0o755)
        return path

    def order(self, name: str, verb: str, what: Order) -> None:
        """Give an order to the next run of the program for that verb."""
        base = self._base(name, verb)
        for suffix in (".reached", ".taken", ".gate"):
            Path(f"{base}{suffix}").unlink(missing_ok=True)
        os.mkfifo(f"{base}.gate", 0o600)
        new = Path(f"{base}.new")
        new.write_text(f"{what}\n")
        new.rename(base)

    def taken(self, name: str, verb: str) -> bool:
        """Whether the order was claimed."""
        return Path(f"{self._base(name, verb)}.taken").exists()

    def reached(self, name: str, verb: str) -> bool:
        """Whether the program stands at the gate, or stood there."""
        return Path(f"{self._base(name, verb)}.reached").exists()

    def wait_reached(self, name: str, verb: str) -> None:
        """Return when the program stands at the gate."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.reached(name, verb):
            assert time.monotonic() < deadline_s, f"{name} {verb} was not run"
            time.sleep(0.005)

    def release(self, name: str, verb: str) -> bool:
        """Open the gate; False when nobody stands there (any more)."""
        with contextlib.suppress(OSError):
            fd = os.open(f"{self._base(name, verb)}.gate", os.O_WRONLY | os.O_NONBLOCK)
            with os.fdopen(fd, "w") as gate:
                gate.write("go\n")
            return True
        return False

    def clear(self) -> None:
        """Take back what was not claimed, and open every gate."""
        for entry in sorted(self._control.iterdir()):
            if entry.suffix == ".gate":
                name, _, verb = entry.name.removesuffix(".gate").rpartition(".")
                self.release(name, verb)
        for entry in sorted(self._control.iterdir()):
            entry.unlink(missing_ok=True)

    def _base(self, name: str, verb: str) -> Path:
        return self._control / f"{name}.{verb}"


@contextlib.contextmanager
def stranger(*argv: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's of the node; it ends with the block, however that ends."""
    process = subprocess.Popen(argv or ("sleep", "1000"), cwd=cwd)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
