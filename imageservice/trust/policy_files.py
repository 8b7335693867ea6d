"""The policy files of a node: one for all, and one for each namespace that has its own.

A file is looked at whenever it is asked for and read again when it changed, so that a new policy
holds for the next pull and the next container without a restart. Keys are read each time they are
needed: they are small, and a key that was exchanged must count at once. A namespace's policy takes
the place of the node's, as in CRI-O; where the directory has none for it, the node's holds. What
others than root can write is no policy and no key, and is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.errors import PolicyInvalid
from imageservice.trust.model import Demand, FulcioRoot, PkiRoot
from imageservice.trust.policy import MAX_POLICY_BYTES, Policy, Sigstore, parse_policy
from sandbox.host.dropins import check_trusted
from sandbox.host.errors import InvalidArgument, NotFound, PodwrightError, map_os_errors
from sandbox.host.files import read_limited

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imageservice.reference import Reference
    from imageservice.trust.document import Source
    from imageservice.trust.policy import Requirements

#: A bundle of authorities in PEM; one key has 200 bytes.
MAX_MATERIAL_BYTES: Final = 256 * 1024
#: Files of the directory that are looked at together; a cluster has fewer namespaces.
MAX_NAMESPACES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy and where it is from."""

    path: Path
    policy: Policy


class PolicyFiles:
    """Reads policies; the methods block for a few file system calls and are for one thread each."""

    def __init__(self, policy: Path | None, directory: Path | None) -> None:
        self._policy = policy
        self._directory = directory
        self._read: dict[Path, tuple[tuple[int, ...], Policy]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether this node has no policy at all."""
        return self._policy is None and self._directory is None

    @property
    def by_namespace(self) -> bool:
        """Whether namespaces may have policies of their own."""
        return self._directory is not None

    def load(self, namespace: str) -> Loaded | None:
        """What holds for pods of the namespace ("": for none in particular); None: no policy.

        Raises:
            PolicyInvalid: the file cannot be read or is no policy.
            InvalidArgument: the namespace cannot be the name of a file.
        """
        if self._directory is not None and namespace:
            if "/" in namespace or "\0" in namespace or namespace.startswith("."):
                raise InvalidArgument(f"namespace {namespace[:80]!a} is no name")
            own = self._load(self._directory / f"{namespace}.json", may_be_missing=True)
            if own is not None:
                return own
        return None if self._policy is None else self._load(self._policy, may_be_missing=False)

    def every(self) -> Iterator[Loaded]:
        """All policies of the node; those that cannot be read are left out."""
        paths = [] if self._policy is None else [self._policy]
        if self._directory is not None and self._directory.is_dir():
            with map_os_errors("cannot list policies", path=str(self._directory)):
                found = sorted(self._directory.glob("*.json"))
            paths += found[:MAX_NAMESPACES]
        for path in paths:
            try:
                loaded = self._load(path, may_be_missing=True)
            except PolicyInvalid:
                continue  # whoever it holds for is told
            if loaded is not None:
                yield loaded

    def any_demands(self, reference: Reference) -> bool:
        """Whether some policy of the node demands signatures of this image."""
        return any(
            isinstance(one, Sigstore)
            for loaded in self.every()
            for one in loaded.policy.requirements(reference)[1]
        )

    def _load(self, path: Path, *, may_be_missing: bool) -> Loaded | None:
        try:
            with map_os_errors("cannot read policy"):
                status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                check_trusted(path)
                known = stamp, parse_policy(read_limited(path, MAX_POLICY_BYTES))
                self._read[path] = known
            return Loaded(path, known[1])
        except PolicyInvalid as error:
            message = error.message.removeprefix(PolicyInvalid.PREFIX)
            raise PolicyInvalid(f"policy {path}: {message}", hint=_MEND) from error
        except NotFound as error:
            self._read.pop(path, None)
            # A link to nothing was meant to be a policy: the laxer one must not take its place.
            if may_be_missing and not path.is_symlink():
                return None
            raise PolicyInvalid(f"policy {path} does not exist", hint=_MEND) from error
        except PodwrightError as error:
            raise PolicyInvalid(f"policy {path}: {error.message}", hint=_MEND) from error


_MEND: Final = "no image is accepted until it is mended; see podwright check"


def demands(requirements: Requirements) -> tuple[Demand, ...]:
    """The `sigstoreSigned` ones among them with their key material, read now.

    Raises:
        PolicyInvalid: naming a file that cannot be read.
    """
    return tuple(
        _demand(one, f"requirement {number} (sigstoreSigned)")
        for number, one in enumerate(requirements, 1)
        if isinstance(one, Sigstore)
    )


def _demand(one: Sigstore, label: str) -> Demand:
    fulcio, pki = one.fulcio, one.pki
    return Demand(
        label=label,
        keys=tuple(map(_material, one.keys)),
        fulcio=None
        if fulcio is None
        else FulcioRoot(
            authorities=_material(fulcio.authorities),
            oidc_issuer=fulcio.oidc_issuer,
            subject_email=fulcio.subject_email,
        ),
        pki=None
        if pki is None
        else PkiRoot(
            roots=_material(pki.roots),
            intermediates=b"" if pki.intermediates is None else _material(pki.intermediates),
            subject_email=pki.subject_email,
            subject_hostname=pki.subject_hostname,
        ),
        rekor_keys=tuple(map(_material, one.rekor_keys)),
        identity=one.identity,
    )


def _material(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        check_trusted(source)
        return read_limited(source, MAX_MATERIAL_BYTES)
    except PodwrightError as error:
        # Half of these name the file in their words, half beside them.
        raise PolicyInvalid(f"key file cannot be used: {error}", hint=_MEND) from error
