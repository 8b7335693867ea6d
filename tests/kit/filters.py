"""Seccomp filters as containers get them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sandbox import oci
from sandbox.model import ProfileType, SecurityProfile
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


def localhost_filter(profile: Mapping[str, object]) -> oci.Seccomp:
    """What becomes of a profile on the node, on Linux 6.1."""
    resolved = resolve_seccomp(
        SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="/p.json"),
        privileged=False,
        content=json.dumps(profile).encode(),
        bounding=frozenset(),
        host=SeccompHost(kernel=(6, 1)),
    )
    assert resolved is not None
    return resolved
