"""Known holes of what Podwright is built from and drives, held against this node's versions.

A hole stands here when it can be reached through what Podwright does; each says in one line what
somebody could do. It is an error where every pod can reach it (the daemon's own libraries, the
default runtime) and it is serious; it is a warning where it is minor, or where only pods that name
another handler can. `podwright check` refuses a node with an error; `podwright serve` writes
warnings to its log and goes on: pods run already, and a runtime service that does not come up after
a reboot is a worse hole than most of these.

Not here, because nothing leads to them: crun's CVE-2026-30892 (options of `exec -u`; we hand over
whole process documents), CVE-2025-24965 (its krun mode) and CVE-2022-27650 (we name every set of
capabilities); CVE-2026-88264 and -88265 (nothing mounted on /dev); protobuf's CVE-2025-4565 and
CVE-2026-0994 (its parser in Python, which `podwright check` refuses, and its JSON parser);
libcni's CVE-2021-20206 (we call plugins ourselves, by names without a slash).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from cri.check.versions import is_before, release_of, series, upstream_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

GROUP: Final = "known holes"


@dataclass(frozen=True, slots=True)
class Hole:
    """One hole, or several that were mended together.

    Attributes:
        component: what has it: a program's name, or a Python distribution's.
        advisories: its public names.
        words: what somebody could do.
        mended: first releases without it, oldest first; each counts for its own series (first two
            numbers), the last one for all later series too.
        since: first release that has it; empty: all.
        packages: Debian packages of older releases that have the mending brought back.
        serious: a way out of a container, or into the daemon.
    """

    component: str
    advisories: tuple[str, ...]
    words: str
    mended: tuple[str, ...]
    since: str = ""
    packages: tuple[str, ...] = ()
    serious: bool = True


#: Releases from the advisories of each project, Debian's from its packages' changelogs.
HOLES: Final = (
    Hole(
        "runc",
        ("CVE-2023-27561", "CVE-2023-28642"),
        "two containers with a common volume can have /proc mounted elsewhere",
        ("1.1.5",),
    ),
    Hole(
        "runc",
        ("CVE-2024-21626",),
        "an image's working directory can be a descriptor that leads to the node's files",
        ("1.1.12",),
        packages=("1.1.5+ds1-1+deb12u1", "1.0.0~rc93+ds1-5+deb11u3"),
    ),
    Hole(
        "runc",
        ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"),
        "containers started side by side can redirect masks and writes to the node's /proc",
        ("1.2.8", "1.3.3", "1.4.0~rc.3"),
    ),
    Hole(
        "runc",
        ("CVE-2024-45310",),
        "two containers with a common volume can have empty files and directories made on the node",
        ("1.1.14", "1.2.0~rc.3"),
        serious=False,
    ),
    Hole(
        "runc",
        ("CVE-2026-41579",),
        "an image whose /dev is a link has a few links made and `ptmx` removed on the node",
        ("1.3.6", "1.4.3", "1.5.0~rc.3"),
        serious=False,
    ),
    Hole(
        "crun",
        ("CVE-2026-47766",),
        "an image whose /dev is a link has a few links made on the node",
        ("1.28",),
        serious=False,
    ),
    Hole(
        "cni-plugins",
        ("CVE-2019-9946",),
        "a host port catches traffic before the rules of services",
        ("0.7.5",),
    ),
    Hole(
        "cni-plugins",
        ("CVE-2020-10749",),
        "a pod can pose as the IPv6 router of other pods",
        ("0.8.6",),
    ),
    Hole(
        "cni-plugins",
        ("CVE-2025-67499",),
        "portmap with its nftables backend forwards traffic that was not for the node",
        ("1.9.0",),
        since="1.6.0",
        serious=False,
    ),
    # Distributions mend old releases of the kernel under their numbers, so these only warn.
    Hole(
        "linux",
        ("CVE-2022-0185",),
        "a container that may make user namespaces can write beyond a buffer of the kernel",
        ("5.10.93", "5.15.16", "5.16.2"),
        since="5.1",
        serious=False,
    ),
    Hole(
        "linux",
        ("CVE-2022-0847",),
        "a container can write into files that it may only read, those of its image included",
        ("5.10.102", "5.15.25", "5.16.11"),
        since="5.8",
        serious=False,
    ),
    Hole(
        "h11",
        ("CVE-2025-43859",),
        "malformed chunks, of a registry or a streaming client, are read as another message",
        ("0.16.0",),
    ),
    Hole(
        "grpcio",
        ("CVE-2023-33953",),
        "header tables of a client take memory and time without bound",
        ("1.53.2", "1.54.3", "1.55.2", "1.56.2", "1.57.0"),
    ),
)


def holes_of(component: str, release: str, package: str = "") -> list[Hole]:
    """The holes that this version has.

    Args:
        component: as in `Hole`.
        release: the number that the program or library tells; empty: not known.
        package: version of the Debian package it comes from; empty: from elsewhere.
    """
    if not release and not package:
        return []
    found = upstream_of(package) if package else release_of(release)
    return [
        hole
        for hole in HOLES
        if hole.component == component
        and not (hole.since and is_before(found, hole.since))
        and not _is_mended(hole, found)
        and not any(
            upstream_of(mended) == found and not is_before(package, mended)
            for mended in (hole.packages if package else ())
        )
    ]


def _is_mended(hole: Hole, release: str) -> bool:
    for mended in hole.mended:
        if series(mended) == series(release):
            return not is_before(release, mended)
    return not is_before(release, hole.mended[-1])


def findings(
    component: str,
    release: str,
    package: str = "",
    *,
    reached_by_all: bool = True,
    accepted: Collection[str] = (),
) -> list[Finding]:
    """What to say of a component's version.

    Args:
        component: as for `holes_of`.
        release: as for `holes_of`.
        package: as for `holes_of`.
        reached_by_all: every pod uses it; otherwise only pods that ask for it.
        accepted: advisories that the operator has looked at (`check.accepted_advisories`).
    """
    shown = package or release
    said = []
    for hole in holes_of(component, release, package):
        names = ", ".join(hole.advisories)
        if all(name in accepted for name in hole.advisories):
            said.append(
                Finding(GROUP, component, Level.OK, f"{names}: accepted by the configuration")
            )
            continue
        serious = hole.serious and reached_by_all
        said.append(
            Finding(
                GROUP,
                component,
                Level.ERROR if serious else Level.WARNING,
                f"{shown} has {names}: {hole.words}",
                f"install {' or '.join(map(_plain, hole.mended))} or later; where your distribution"
                " has mended its package, name the advisories in check.accepted_advisories",
            )
        )
    return said


def libraries(accepted: Collection[str] = ()) -> list[Finding]:
    """The daemon's own libraries, as they are installed beside it."""
    names = [name for name in dict.fromkeys(h.component for h in HOLES) if name not in _PROGRAMS]
    said: list[Finding] = []
    for name in names:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        said += findings(name, installed, accepted=accepted)
    return _or_clean("libraries", names, said)


def _or_clean(name: str, looked_at: Iterable[str], said: list[Finding]) -> list[Finding]:
    if any(finding.level is not Level.OK for finding in said):
        return said
    return [*said, Finding(GROUP, name, Level.OK, f"none in {', '.join(looked_at)}")]


_PROGRAMS: Final = frozenset({"runc", "crun", "cni-plugins", "linux"})


def _plain(mended: str) -> str:
    return mended.replace("~", "-")
