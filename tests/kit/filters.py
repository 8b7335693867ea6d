"""Seccomp filters as containers get them."""

from __future__ import annotations

from sandbox import oci
from sandbox.model import SecurityProfile
from sandbox.security.seccomp import SeccompHost, resolve_seccomp


def default_filter(*bounding: str) -> oci.Seccomp:
    """The default one, of a container that may have these capabilities, on Linux 6.1."""
    resolved = resolve_seccomp(
        SecurityProfile(),
        privileged=False,
        content=None,
        bounding=frozenset(bounding),
        host=SeccompHost(kernel=(6, 1)),
    )
    assert resolved is not None
    return resolved
