"""Slices of systemd: made with limits, changed and stopped, through its own bus.

The OCI runtimes have systemd make a scope for each container, and its slice comes along; but a
slice that came along stays as a unit when its last scope has gone, and knows no limits. `busctl`
belongs to systemd itself, so it is there wherever this is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox.host.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.host.processes import Finished, ProcessRunner

_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
#: A call waits for whatever systemd is doing before; D-Bus itself gives up after 25 s.
_CALL_S: Final = 30.0
_GONE: Final = ("NoSuchUnit", "not loaded")
_THERE: Final = ("UnitExists", "already loaded")
_WRONG: Final = ("InvalidArgs", "PropertyReadOnly", "not valid", "out of range")


class Property(NamedTuple):
    """A property of a unit (org.freedesktop.systemd1(5)).

    Attributes:
        name: such as `MemoryMax`.
        signature: D-Bus type: `t` for 64 bits, `ay` for bytes.
        value: as busctl(1) wants it; for `ay` the number of bytes first.
    """

    name: str
    signature: str
    value: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """For busctl's command line."""
        return (self.name, self.signature, *self.value)


class Systemd:
    """See the module text."""

    def __init__(self, runner: ProcessRunner) -> None:
        """Run busctl through `runner`."""
        self._runner = runner

    async def start_slice(self, name: str, properties: Sequence[Property]) -> bool:
        """Make a slice with these properties; False when there is one of that name already.

        Raises:
            InvalidArgument: a property that systemd does not take; there is no slice then.
            Unavailable: systemd does not answer.
        """
        words = [word for each in properties for word in each.words]
        done = await self._call(
            *("StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail"),
            *(str(len(properties)), *words, "0"),
        )
        if done.exit_status and _says(done, _THERE):
            return False
        _check(done, "cannot make a slice", name)
        return True

    async def set_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Change a unit until the next boot, or until it is stopped.

        Raises:
            InvalidArgument: a property that systemd does not take; nothing has changed.
            Unavailable: there is no such unit, or systemd does not answer.
        """
        words = [word for each in properties for word in each.words]
        done = await self._call(
            "SetUnitProperties", "sba(sv)", name, "true", str(len(properties)), *words
        )
        _check(done, "cannot change a slice", name)

    async def stop(self, name: str) -> None:
        """Stop a unit, which is forgotten then; one that is not there is success.

        Raises:
            Unavailable: systemd does not answer.
        """
        done = await self._call("StopUnit", "ss", name, "replace")
        if not (done.exit_status and _says(done, _GONE)):
            _check(done, "cannot stop a slice", name)

    async def _call(self, method: str, *words: str) -> Finished:
        argv = ["busctl", "--quiet", "call", *_MANAGER, method, *words]
        return await self._runner.run(argv, timeout_s=_CALL_S)


def _says(done: Finished, words: tuple[str, ...]) -> bool:
    text = done.stderr.decode(errors="replace")
    return any(word in text for word in words)


def _check(done: Finished, message: str, name: str) -> None:
    if done.exit_status == 0:
        return
    kind = InvalidArgument if _says(done, _WRONG) else Unavailable
    raise kind(
        message,
        unit=name,
        systemd=done.stderr.decode(errors="replace").strip()[-512:],
        replay=done.replay,
    )
