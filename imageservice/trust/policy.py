"""containers-policy.json(5) as a value: the grammar alone, no files and no cryptography.

The file is read as strictly as its manual page has it: a key that is unknown, missing or there
twice, a list without requirements, a scope that no image can have, and the whole policy is refused,
because a policy that says less than its author thinks is worse than none.

`signedBy` and `signedBaseLayer` (GPG) are the one softness. Policies that distributions ship have
them for single registries; refusing the file would refuse every image of a node. They are read, and
nothing meets them: images of their scopes are refused by name, `podwright check` says which.

Of the transports only `docker` concerns this runtime: all its images have names of registries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

from imageservice.errors import PolicyInvalid, ReferenceInvalid
from imageservice.reference import parse_reference
from imageservice.strict_json import strict_object
from imageservice.trust.document import Table, shown, spellings
from imageservice.trust.identity import is_name_only
from imageservice.trust.model import Identity, MatchKind
from imageservice.trust.scopes import check_scope, scopes_of
from sandbox.host.errors import InvalidArgument, PodwrightError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageservice.reference import Reference
    from imageservice.trust.document import Source

#: A policy is written by hand; a thousand scopes take 200 KiB.
MAX_POLICY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Accept:
    """`insecureAcceptAnything`."""


@dataclass(frozen=True, slots=True)
class Reject:
    """`reject`."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A requirement that nothing meets here; `kind` in the policy's words."""

    kind: str


@dataclass(frozen=True, slots=True)
class FulcioSource:
    """`fulcio` with its certificates not yet read."""

    authorities: Source
    oidc_issuer: str
    subject_email: str


@dataclass(frozen=True, slots=True)
class PkiSource:
    """`pki` with its certificates not yet read."""

    roots: Source
    intermediates: Source | None
    subject_email: str
    subject_hostname: str


@dataclass(frozen=True, slots=True)
class Sigstore:
    """`sigstoreSigned` with its key material not yet read; one of the first three is there."""

    keys: tuple[Source, ...]
    fulcio: FulcioSource | None
    pki: PkiSource | None
    rekor_keys: tuple[Source, ...]
    identity: Identity


Requirement: TypeAlias = "Accept | Reject | Unsupported | Sigstore"
Requirements: TypeAlias = "tuple[Requirement, ...]"


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for which images; requirements are never empty, and all must be met.

    Attributes:
        default: for what nothing else speaks of.
        docker: by scope; "" is the transport's default.
    """

    default: Requirements
    docker: Mapping[str, Requirements]

    def requirements(self, reference: Reference | None) -> tuple[str, Requirements]:
        """The scope that decides, in words, and what it demands; None: an image without a name."""
        for scope in scopes_of(reference) if reference is not None else ():
            if scope in self.docker:
                return scope, self.docker[scope]
        if "" in self.docker:
            return 'the docker transport ("")', self.docker[""]
        return "default", self.default

    def sources(self) -> Iterator[Path]:
        """Every file that the docker scopes and the default name."""
        for requirements in (self.default, *self.docker.values()):
            for one in requirements:
                if isinstance(one, Sigstore):
                    yield from (source for source in _sources(one) if isinstance(source, Path))


def _sources(one: Sigstore) -> Iterator[Source]:
    yield from (*one.keys, *one.rekor_keys)
    if one.fulcio is not None:
        yield one.fulcio.authorities
    if one.pki is not None:
        yield one.pki.roots
        if one.pki.intermediates is not None:
            yield one.pki.intermediates


def parse_policy(body: bytes) -> Policy:
    """Read a policy.

    Raises:
        PolicyInvalid: with the first thing that is wrong and where in the document it is.
    """
    try:
        document = strict_object(body, limit_bytes=MAX_POLICY_BYTES, what="policy")
    except PodwrightError as error:
        raise PolicyInvalid(error.message) from error
    top = Table(document, "policy", {"default", "transports"})
    default = _requirements(top.take("default"), "default")
    transports = {
        name: {
            scope: _requirements(value, f"transports[{shown(name)}][{shown(scope)}]")
            for scope, value in Table(scopes, f"transports[{shown(name)}]").fields.items()
        }
        for name, scopes in Table(top.take("transports", {}), "transports").fields.items()
    }
    docker = transports.get("docker", {})
    for scope in docker:
        try:
            if scope:
                check_scope(scope)
        except InvalidArgument as error:
            raise PolicyInvalid(f"transports.docker: {error.message}") from error
    return Policy(default, docker)


def _requirements(value: object, where: str) -> Requirements:
    if not isinstance(value, list) or not value:
        raise PolicyInvalid(f"{where} must be a list of requirements that is not empty")
    return tuple(_requirement(one, f"{where}[{number}]") for number, one in enumerate(value))


def _requirement(value: object, where: str) -> Requirement:
    kind = Table(value, where).text("type")
    match kind:
        case "insecureAcceptAnything":
            Table(value, where, {"type"})
            return Accept()
        case "reject":
            Table(value, where, {"type"})
            return Reject()
        case "sigstoreSigned":
            return _sigstore(value, where)
        case "signedBy":
            known = {"type", "keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"}
            Table(value, where, known)
            return Unsupported(kind)
        case "signedBaseLayer":
            Table(value, where, {"type", "baseLayerIdentity"})
            return Unsupported(kind)
        case _:
            raise PolicyInvalid(f"{where}: unknown type {shown(kind)}")


def _sigstore(value: object, where: str) -> Sigstore:
    table = Table(
        value,
        where,
        {
            "type", "fulcio", "pki", "signedIdentity",
            *spellings("key"), *spellings("rekorPublicKey"),
        },
    )  # fmt: skip
    keys = table.sources("key")
    if sum((bool(keys), table.has("fulcio"), table.has("pki"))) != 1:
        raise PolicyInvalid(
            f"{where}: exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki must be"
            " there"
        )
    rekor_keys = table.sources("rekorPublicKey")
    if table.has("fulcio") and not rekor_keys:
        raise PolicyInvalid(f"{where}: fulcio needs a rekorPublicKey… as well")
    if table.has("pki") and rekor_keys:
        raise PolicyInvalid(f"{where}: pki and rekorPublicKey… do not go together")
    return Sigstore(
        keys=keys,
        fulcio=_fulcio(table.take("fulcio"), f"{where}.fulcio") if table.has("fulcio") else None,
        pki=_pki(table.take("pki"), f"{where}.pki") if table.has("pki") else None,
        rekor_keys=rekor_keys,
        identity=_identity(table.take("signedIdentity"), f"{where}.signedIdentity")
        if table.has("signedIdentity")
        else Identity(),
    )


def _fulcio(value: object, where: str) -> FulcioSource:
    table = Table(value, where, {"caPath", "caData", "oidcIssuer", "subjectEmail"})
    authorities = table.source("ca")
    if authorities is None:
        raise PolicyInvalid(f"{where}: caPath or caData is missing")
    return FulcioSource(authorities, table.text("oidcIssuer"), table.text("subjectEmail"))


def _pki(value: object, where: str) -> PkiSource:
    known = {"caRootsPath", "caRootsData", "caIntermediatesPath", "caIntermediatesData"}
    table = Table(value, where, {*known, "subjectEmail", "subjectHostname"})
    roots = table.source("caRoots")
    if roots is None:
        raise PolicyInvalid(f"{where}: caRootsPath or caRootsData is missing")
    email, hostname = table.text("subjectEmail", ""), table.text("subjectHostname", "")
    if not email and not hostname:
        raise PolicyInvalid(f"{where}: subjectEmail or subjectHostname is missing")
    return PkiSource(roots, table.source("caIntermediates"), email, hostname)


#: Keys of each kind besides "type".
_MATCH_KEYS: Final[Mapping[str, set[str]]] = {
    "exactReference": {"dockerReference"},
    "exactRepository": {"dockerRepository"},
    "remapIdentity": {"prefix", "signedPrefix"},
}


def _identity(value: object, where: str) -> Identity:
    named = Table(value, where).text("type")
    kinds: tuple[MatchKind, ...] = get_args(MatchKind)
    kind = next((one for one in kinds if one == named), None)
    if kind is None:
        raise PolicyInvalid(f"{where}: unknown type {shown(named)}")
    table = Table(value, where, {"type", *_MATCH_KEYS.get(kind, set())})
    if kind == "remapIdentity":
        prefix, signed = table.text("prefix"), table.text("signedPrefix")
        for key, text in (("prefix", prefix), ("signedPrefix", signed)):
            if not _is_prefix(text):
                raise PolicyInvalid(f"{where}.{key} is no host, namespace or repository")
        return Identity(kind=kind, prefix=prefix, signed_prefix=signed)
    if kind not in _MATCH_KEYS:
        return Identity(kind=kind)
    (key,) = _MATCH_KEYS[kind]
    text = table.text(key)
    try:
        parse_reference(text)
    except ReferenceInvalid as error:
        raise PolicyInvalid(f"{where}.{key}: {error.message}") from error
    if is_name_only(text) != (kind == "exactRepository"):
        wanted = "no tag or digest" if kind == "exactRepository" else "a tag or a digest"
        raise PolicyInvalid(f"{where}.{key} must have {wanted}")
    return Identity(kind=kind, value=text)


def _is_prefix(text: str) -> bool:
    try:
        check_scope(text)
    except InvalidArgument:
        return False
    # A host's port is before the first slash; what is after a later colon would be a tag.
    return not text.startswith("*") and ("/" not in text or is_name_only(text))
