"""`Syscalls` that record and can be told to fail; the methods are derived from the protocol."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sandbox.host.errors import from_os_error
from sandbox.host.syscalls import FileSystemStat, Syscalls


@dataclass(frozen=True)
class Call:
    """One call: its name and its arguments by parameter name, defaults filled in."""

    name: str
    arguments: Mapping[str, object]

    def __getattr__(self, name: str) -> object:
        try:
            return self.arguments[name]
        except KeyError:
            raise AttributeError(name) from None


class FakeSyscalls:
    """Records every call in `calls` and does nothing to the machine.

    `fail` has, for each method, what becomes of its calls in order: an errno, or None for success;
    a call beyond the list succeeds. `results` has values, or functions of the arguments, to return.
    What returns a descriptor otherwise returns a real one of /dev/null, because callers close it.
    """

    def __init__(
        self,
        *,
        fail: Mapping[str, Sequence[int | None]] | None = None,
        results: Mapping[str, object] | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self._fail = {name: list(numbers) for name, numbers in (fail or {}).items()}
        self._results = dict(results or {})
        unknown = (self._fail.keys() | self._results.keys()) - METHODS.keys()
        assert not unknown, f"no such system call: {sorted(unknown)}"

    @property
    def names(self) -> list[str]:
        """The names of the calls, in order."""
        return [call.name for call in self.calls]

    def named(self, name: str) -> list[Call]:
        """The calls of that name."""
        assert name in METHODS, f"no such system call: {name}"
        return [call for call in self.calls if call.name == name]

    def _call(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        bound = METHODS[name].bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        self.calls.append(Call(name, arguments))
        outcomes = self._fail.get(name)
        if outcomes:
            number = outcomes.pop(0)
            if number is not None:
                error = OSError(number, os.strerror(number))
                raise from_os_error(error, f"cannot {name}") from error
        if name in self._results:
            result = self._results[name]
            return result(**arguments) if callable(result) else result
        match METHODS[name].return_annotation:
            case "int" if name in _NUMBERS:
                return 1
            case "int":
                return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            case "FileSystemStat":
                return FileSystemStat(0, 0, 0, 0, 0, 0)
        return None


#: Methods whose int is no descriptor.
_NUMBERS = {"inotify_add_watch", "get_inode_flags"}

METHODS = {
    name: inspect.signature(member)
    for name, member in vars(Syscalls).items()
    if callable(member) and not name.startswith("_")
}


def _method(name: str) -> Callable[..., object]:
    def call(self: FakeSyscalls, *args: object, **kwargs: object) -> object:
        return self._call(name, args, kwargs)

    return call


for _name in METHODS:
    setattr(FakeSyscalls, _name, _method(_name))
