"""One virtual machine: a QEMU process that dies with this one, and the two lines into it.

    with Machine.booted(boot, disks) as machine:        # or Machine.restored(...)
        machine.run(["true"], sys.stdout.buffer.write)
        machine.save(boot / "state")

Both lines, to the agent and to QEMU's own monitor (QMP), are unix sockets that QEMU connects to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.registry import bound_to_parent
from tests.kit.vm import recipe

#: How long the machine may take to boot, and a saved one to wake; seconds.
BOOT_PATIENCE_S: Final = 300.0
WAKE_PATIENCE_S: Final = 120.0


class MachineFailed(Exception):
    """The machine did not come up, or is gone; the text has the end of its console."""


class TimeIsUp(Exception):
    """A command took longer than it was given."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine starts from.

    Attributes:
        qemu: QEMU, unpacked.
        folder: has `vmlinuz`, `initrd`, and `root.ext4`.
        disks: further disks, seen as vdb, vdc, …; never changed.
    """

    qemu: Path
    folder: Path
    disks: tuple[Path, ...]


class Line:
    """Lines of JSON over a socket."""

    def __init__(self, connection: socket.socket, alive: Callable[[], None]) -> None:
        self._socket = connection
        self._alive = alive
        self._pending = b""

    def send(self, message: Mapping[str, object]) -> None:
        """Write one message."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline_s: float) -> dict[str, object]:
        """The next message.

        Raises:
            TimeIsUp: none before `deadline_s` of the monotonic clock.
            MachineFailed: the other end is gone.
        """
        while b"\n" not in self._pending:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeIsUp
            if select.select([self._socket], [], [], min(left_s, 1.0))[0]:
                piece = self._socket.recv(1 << 20)
                if not piece:
                    time.sleep(0.2)  # its end follows
                    self._alive()
                    raise MachineFailed("QEMU has closed the line")
                self._pending += piece
            else:
                self._alive()
        line, _, self._pending = self._pending.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message


class Machine:
    """See the module text. Make it with `booted` or `restored`."""

    def __init__(self, boot: Boot, work: Path, *, state: Path | None) -> None:
        self._work = work
        self._console = work / "console"
        self.booted_disk = work / "root.ext4"
        listeners = {name: _listener(work / f"{name}.sock") for name in ("agent", "qmp")}
        argv = bound_to_parent(self._argv(boot, state))
        with (work / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(work)},
            )
        lines = {
            name: Line(self._accept(each), self._must_live) for name, each in listeners.items()
        }
        self._agent, self._qmp = lines["agent"], lines["qmp"]
        self._qmp.receive(time.monotonic() + WAKE_PATIENCE_S)  # its greeting
        self._command("qmp_capabilities")

    @classmethod
    @contextlib.contextmanager
    def booted(cls, boot: Boot, scratch: Path) -> Iterator[Machine]:
        """A machine that has booted, over a copy of its root disk in `scratch`."""
        with cls._running(boot, scratch, None) as machine:
            try:
                machine.wait_ready()
            except TimeIsUp:
                raise MachineFailed(f"no answer after the boot:\n{machine.console()}") from None
            yield machine

    @classmethod
    @contextlib.contextmanager
    def restored(cls, boot: Boot, scratch: Path, state: Path) -> Iterator[Machine]:
        """A machine as it was saved in the file `state`; no disk is changed."""
        with cls._running(boot, scratch, state) as machine:
            machine.wait_awake()
            yield machine

    @classmethod
    @contextlib.contextmanager
    def _running(cls, boot: Boot, scratch: Path, state: Path | None) -> Iterator[Machine]:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="run-", dir=scratch) as name:
            work = Path(name)
            if state is None:
                _copy_sparse(boot.folder / "root.ext4", work / "root.ext4")
            machine = cls(boot, work, state=state)
            try:
                yield machine
            finally:
                machine._process.kill()
                machine._process.wait()

    def _argv(self, boot: Boot, state: Path | None) -> list[str]:
        program = str(boot.qemu / "usr/bin/qemu-system-x86_64")
        shares = ("usr/share/qemu", "usr/share/seabios")
        firmware = [word for share in shares for word in ("-L", str(boot.qemu / share))]
        root = boot.folder / "root.ext4" if state else self.booted_disk
        # What a machine writes is thrown away; only while it is made its root disk is kept.
        drives = [f"file={root},snapshot={'on' if state else 'off'}"]
        drives += [f"file={disk},snapshot=on" for disk in boot.disks]
        disks = []
        for number, drive in enumerate(drives):
            disks += ["-drive", f"if=none,id=d{number},format=raw,cache=unsafe,{drive}"]
            disks += ["-device", f"virtio-blk-pci,drive=d{number}"]
        return [
            *(program, *firmware, *recipe.MACHINE, *disks),
            *("-kernel", str(boot.folder / "vmlinuz"), "-initrd", str(boot.folder / "initrd")),
            *("-append", recipe.KERNEL_LINE),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={self._work / 'agent.sock'}"),
            *("-device", "virtserialport,chardev=agent,name=podwright"),
            *("-chardev", f"socket,id=qmp,path={self._work / 'qmp.sock'}"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"),
            *(("-incoming", f"exec:cat {state}") if state else ()),
        ]

    # The line to the agent.

    def wait_ready(self) -> None:
        """Return when the agent has started and its machine has. Raises TimeIsUp."""
        deadline_s = time.monotonic() + BOOT_PATIENCE_S
        while "ready" not in self._agent.receive(deadline_s):
            pass
        self.run(["systemctl", "is-system-running", "--wait"], lambda _: None)

    def wait_awake(self) -> None:
        """Return when the saved state has been read and the machine runs on."""
        deadline_s = time.monotonic() + WAKE_PATIENCE_S
        while True:
            status = self._command("query-status")
            assert isinstance(status, dict)
            if status["status"] == "paused":  # as it was when it was saved
                self._command("cont")
                return
            if time.monotonic() > deadline_s:
                raise MachineFailed(f"the saved machine does not wake: {status}")
            time.sleep(0.02)

    def run(
        self,
        argv: Sequence[str],
        write: Callable[[bytes], object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        limit_s: float = BOOT_PATIENCE_S,
    ) -> int:
        """Run a command inside, its output to `write` as it comes; its exit status.

        Raises:
            TimeIsUp: it took longer than `limit_s`; the machine is of no use then.
            MachineFailed: the machine is gone.
        """
        deadline_s = time.monotonic() + limit_s
        self._agent.send({"argv": list(argv), "env": dict(env or {}), "cwd": cwd})
        while True:
            message = self._agent.receive(deadline_s)
            if "out" in message:
                write(base64.b64decode(str(message["out"])))
            if "exit" in message:
                return int(str(message["exit"]))

    # The line to QEMU.

    def save(self, state: Path) -> None:
        """Stop the machine and write its memory to `state`; its disk is `booted_disk` then."""
        self._command("stop")
        self._command("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        self._command("migrate", {"uri": f"exec:cat > {state}"})
        while True:
            answer = self._command("query-migrate")
            assert isinstance(answer, dict)
            if answer.get("status") == "completed":
                break
            if answer.get("status") == "failed":
                raise MachineFailed(f"the state cannot be saved: {answer}")
            time.sleep(0.05)
        self._command("quit")
        self._process.wait()

    def _command(self, name: str, arguments: Mapping[str, object] | None = None) -> object:
        self._qmp.send({"execute": name, **({"arguments": arguments} if arguments else {})})
        while True:
            answer = self._qmp.receive(time.monotonic() + WAKE_PATIENCE_S)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise MachineFailed(f"QEMU refuses {name}: {answer['error']}")

    def console(self) -> str:
        """The end of what kernel and QEMU have written."""
        log = (self._work / "qemu.log").read_text(errors="replace")
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return f"{text[-3000:]}\n{log[-2000:]}"

    def _must_live(self) -> None:
        if self._process.poll() is not None:
            raise MachineFailed(f"the machine has ended:\n{self.console()}")

    def _accept(self, listener: socket.socket) -> socket.socket:
        with listener:
            listener.settimeout(1.0)
            for _ in range(60):
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    return connection
                self._must_live()
        raise MachineFailed(f"QEMU does not connect:\n{self.console()}")


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _copy_sparse(source: Path, target: Path) -> None:
    cp = shutil.which("cp") or "cp"
    subprocess.run([cp, "--sparse=always", "--reflink=auto", source, target], check=True)
