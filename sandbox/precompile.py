"""Hand a container's seccomp filter to the runtime as a compiled program, where it takes one.

crun takes it in the annotation `run.oci.seccomp_bpf_data` (crun(1), base64 of struct sock_filter).
The rules stay in the document as well: for people who read it, and for a runtime that ignores the
annotation. Whatever cannot be compiled ahead is left to the runtime, so nothing can be lost by it.

Measured on the reference machine with crun 1.8.1: creating a container with the default profile
takes 54 ms without this and 28 ms with it (`performance` in the README has the present figures).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.errors import Unsupported
from sandbox.host.libseccomp import Filter, FilterArgument, FilterRule, compile_filter

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandbox import oci

ANNOTATION: Final = "run.oci.seccomp_bpf_data"
#: How many filters' texts are kept, of 13 KB each.
_TEXTS: Final = 16


class FilterCompiler:
    """Compiles the filters of documents for the runtimes that take them so."""

    def __init__(self, runtimes: Collection[str] = (), *, trees: bool = True) -> None:
        """Of these runtimes, by name; the collection may change. `trees`: see `libseccomp`."""
        self._runtimes = runtimes
        self._trees = trees
        #: By the number of the object, which is held here so that no other has it.
        self._texts: dict[int, tuple[oci.Seccomp, str]] = {}

    def applied(self, spec: oci.Spec, runtime: str) -> oci.Spec:
        """The document as that runtime is to have it; from any thread."""
        seccomp = spec.linux.seccomp
        if seccomp is None or runtime not in self._runtimes:
            return spec
        # Looking a filter up by what is in it takes 80 microseconds of each container's creation,
        # and nearly all have the very same one (`security.seccomp`).
        held = self._texts.get(id(seccomp))
        if held is None:
            held = (seccomp, filter_text(seccomp, tree=self._trees))
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            self._texts[id(seccomp)] = held
        return _annotated(spec, held[1])


def with_compiled_filter(spec: oci.Spec, *, tree: bool = True) -> oci.Spec:
    """The same document with its filter compiled; unchanged where there is none to compile."""
    seccomp = spec.linux.seccomp
    return spec if seccomp is None else _annotated(spec, filter_text(seccomp, tree=tree))


def filter_text(seccomp: oci.Seccomp, *, tree: bool) -> str:
    """What is put into the annotation, empty for a filter that is left to the runtime.

    Those are filters with a notification listener or flags of their own, and what cannot be
    compiled.
    """
    if seccomp.listener_path or seccomp.flags:
        return ""
    try:
        program = compile_filter(to_filter(seccomp), tree=tree)
    except Unsupported:
        return ""
    return base64.b64encode(program).decode("ascii")


def _annotated(spec: oci.Spec, text: str) -> oci.Spec:
    if not text:
        return spec
    annotations = {**spec.annotations, ANNOTATION: text}
    return msgspec.structs.replace(spec, annotations=annotations)


def to_filter(seccomp: oci.Seccomp) -> Filter:
    """The OCI rules as the host layer's value, which is hashable and so can be cached by."""
    return Filter(
        default_action=seccomp.default_action,
        default_error=seccomp.default_errno_ret,
        architectures=seccomp.architectures,
        rules=tuple(
            FilterRule(
                names=rule.names,
                action=rule.action,
                error=rule.errno_ret,
                arguments=tuple(
                    FilterArgument(
                        index=argument.index,
                        operator=argument.op,
                        value=argument.value,
                        value_two=argument.value_two,
                    )
                    for argument in rule.args
                ),
            )
            for rule in seccomp.syscalls
        ),
    )
