"""What the image service asks before it fetches, keeps or runs an image.

    admit_name ─► may this name be asked for at all? blocked places, `reject`; no network yet
    admit_pull ─► the manifest is known, nothing of the image is fetched: is it signed as demanded?
    keep       ─► the image is on the node: so are its signatures now
    admit_use  ─► a container is about to be made of it, by whatever way it came to this node

Which digest must be signed? The manifest's or that of the index that led to it on this node: an
index names its manifests by digest, so who signs it has signed them (`cosign sign` signs what a tag
names; skopeo and CRI-O look at the manifest alone, and want `cosign sign --recursive`).

Under which name? A pull's own. For a container, what the pod's author wrote
(`user_specified_image`), if the image is known by that repository here; else any of its names will
do, as whoever names an image by its id could have said that name as well.

A positive verdict is remembered by demands, name and digests, until a certificate that it rests on
ends; a negative one never: it may be mended meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.errors import (
    PolicyInvalid,
    ReferenceInvalid,
    RegistryBlocked,
    RegistryDenied,
    RegistryUnauthenticated,
    SignatureValidationFailed,
)
from imageservice.reference import Reference, parse_reference
from imageservice.trust.attachments import fetch_signatures
from imageservice.trust.judges import Judges
from imageservice.trust.model import Answer, Demand, Question, Signature, encode
from imageservice.trust.policy import Accept, Reject, Unsupported
from imageservice.trust.policy_files import PolicyFiles, demands
from imageservice.trust.scopes import identity_of, scopes_of
from sandbox.host.errors import DeadlineExceeded, PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from imageservice.credentials import Keyring
    from imageservice.keyrings import NodeKeyrings
    from imageservice.registry.source import ImageSource
    from imageservice.settings import ImageSettings
    from imageservice.trust.kept import KeptSignatures
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner

#: Verdicts remembered; each has 300 bytes.
MAX_VERDICTS: Final = 1024
#: For an image whose signatures are not here, before a container's start gives up.
_LATE_FETCH_S: Final = 10.0
_NS: Final = 1_000_000_000
#: Found signatures by the digest they are of; nothing is told apart from nothing looked for.
Found = dict[str, tuple[Signature, ...]]
_OTHER_PLACE: Final = "cosign 3 puts them where they are found with --new-bundle-format=false"
_NOT_KEPT: Final = "pull it again, so that its signatures are fetched"
_NOT_ALLOWED: Final = (
    "the credentials of a pull are not kept for later: pull it again with them, or give the node"
    " some (image.auth_file, image.namespaced_auth_dir)"
)

_log = get_logger("imageservice.trust")


@dataclass(frozen=True, slots=True)
class _Case:
    """What a policy says of one name, with what a message needs."""

    reference: Reference | None
    path: Path
    scope: str
    demands: tuple[Demand, ...]
    #: Why it is refused whatever may be found; empty when signatures decide.
    refusal: str

    @property
    def name(self) -> str:
        return "the image (it has no name)" if self.reference is None else str(self.reference)

    def refused(
        self, reason: str, *, hint: str = "", not_fetched: PodwrightError | None = None
    ) -> SignatureValidationFailed:
        if isinstance(not_fetched, RegistryDenied | RegistryUnauthenticated):
            hint = _NOT_ALLOWED
        return SignatureValidationFailed(
            f"{self.name} is refused by policy: {reason}",
            hint=hint,
            policy=str(self.path),
            scope=self.scope,
            not_fetched=None if not_fetched is None else not_fetched.message,
        )


class TrustGate:
    """See the module's text. For one event loop."""

    def __init__(
        self,
        settings: ImageSettings,
        source: ImageSource,
        kept: KeptSignatures,
        keyrings: NodeKeyrings,
        runner: ProcessRunner,
        *,
        clock: Clock,
    ) -> None:
        self._files = PolicyFiles(settings.signature_policy, settings.signature_policy_dir)
        self._blocked = frozenset(settings.blocked_registries)
        self._source = source
        self._kept = kept
        self._keyrings = keyrings
        self._clock = clock
        self._judges = Judges(runner)
        self._verdicts: OrderedDict[tuple[str, ...], int | None] = OrderedDict()

    def party(self, namespace: str) -> str:
        """What pulls must agree in to be one: the namespace, where that may make a difference."""
        return namespace if self._files.by_namespace else ""

    async def admit_name(self, reference: Reference, namespace: str) -> None:
        """Refuse what no answer of a registry could make acceptable.

        Raises:
            RegistryBlocked: the operator has blocked the place.
            SignatureValidationFailed: the policy rejects the name.
            PolicyInvalid: the policy cannot be used.
        """
        for scope in scopes_of(reference) if self._blocked else ():
            if scope in self._blocked:
                raise RegistryBlocked(
                    f"images of {scope} are blocked on this node",
                    image=str(reference),
                    hint="see image.blocked_registries",
                )
        if not self._files.is_idle:
            case = await asyncio.to_thread(self._case, reference, namespace)
            if case is not None and case.refusal:
                raise case.refused(case.refusal)

    async def admit_pull(
        self,
        reference: Reference,
        named: Digest,
        manifest: Digest,
        credential: Keyring | None,
        namespace: str,
    ) -> Found:
        """Whether the image may be fetched and kept; what to give to `keep` when it is there.

        Args:
            reference: as asked for.
            named: the digest that the registry has for it, an index's perhaps.
            manifest: the digest of this node's manifest.
            credential: as for the image.
            namespace: of the pod it is for, "" for none.

        Raises:
            SignatureValidationFailed, PolicyInvalid: it may not.
            RegistryUnavailable, ...: its signatures cannot be had.
        """
        if self._files.is_idle:
            return {}
        case = await asyncio.to_thread(self._case, reference, namespace)
        digests = tuple(dict.fromkeys((named, manifest)))
        if case is None or not case.demands:
            return await self._fetch_for_others(reference, digests, credential)
        texts = tuple(map(str, digests))
        if self._is_settled(case, texts) and await self._kept.of(reference.repository, texts):
            return {}
        found: Found = {}
        answer = Answer(accepted=False)
        # Usually what the tag names is signed; only if that does not do is the manifest asked for.
        for digest in digests:
            found[str(digest)] = await fetch_signatures(self._source, reference, digest, credential)
            answer = await self._judged(case, texts, _all(found))
            if answer.accepted:
                return found
        raise case.refused(answer.reason, hint="" if _all(found) else _OTHER_PLACE)

    async def keep(self, reference: Reference, found: Found) -> None:
        """Keep the signatures of an image that is on the node now; raises ResourceExhausted.

        Args:
            reference: as asked for; its repository is where they are from.
            found: what `admit_pull` has returned.
        """
        await self._kept.put(reference.repository, found)

    async def sweep(self) -> None:
        """Forget signatures of images that are gone."""
        await self._kept.sweep()

    async def admit_use(
        self, asked: str, names: Sequence[str], manifest: str, namespace: str
    ) -> None:
        """Whether a container may be made of an image of this node.

        Args:
            asked: what the pod's author called it; may be an id or empty.
            names: the image's tags and repo digests.
            manifest: the digest of its manifest.
            namespace: of the pod.

        Raises:
            SignatureValidationFailed, PolicyInvalid: it may not.
        """
        if self._files.is_idle:
            return
        references = [parse_reference(name) for name in names]
        signed = [str(one.digest) for one in references if one.digest is not None]
        digests = tuple(dict.fromkeys((*signed, manifest)))
        refusals: list[SignatureValidationFailed] = []
        for reference in _names_for(asked, references):
            case = await asyncio.to_thread(self._case, reference, namespace)
            if case is None:
                return
            try:
                await self._admit(case, digests, namespace)
            except SignatureValidationFailed as refusal:
                refusals.append(refusal)
            else:
                return
        raise refusals[0]

    async def _admit(self, case: _Case, digests: tuple[str, ...], namespace: str) -> None:
        if case.refusal:
            raise case.refused(case.refusal)
        if not case.demands or self._is_settled(case, digests):
            return
        assert case.reference is not None  # signatures demanded of no name are a refusal
        found = await self._kept.of(case.reference.repository, digests)
        answer = await self._judged(case, digests, found)
        failure: PodwrightError | None = None
        if not answer.accepted:
            # None were kept, or the image was signed again since, as after a change of keys.
            late, failure = await self._fetch_late(case.reference, digests, namespace)
            if late and late != found:
                found = late
                answer = await self._judged(case, digests, found)
        if not answer.accepted:
            hint = "" if found else _NOT_KEPT
            raise case.refused(answer.reason, hint=hint, not_fetched=failure)

    def _case(self, reference: Reference | None, namespace: str) -> _Case | None:
        """What the policy says; None where there is none. Blocks for a few reads of files."""
        loaded = self._files.load(namespace)
        if loaded is None:
            return None
        seen = None if reference is None else identity_of(reference)
        scope, requirements = loaded.policy.requirements(seen)
        refusal = ""
        for number, one in enumerate(requirements, 1):
            if isinstance(one, Reject):
                refusal = f"requirement {number} is reject"
            elif isinstance(one, Unsupported):
                refusal = f"requirement {number} is {one.kind}, which is not supported"
        demanded = () if refusal else demands(requirements)
        if demanded and reference is None:
            refusal = "signatures are demanded"
        assert refusal or demanded or all(isinstance(one, Accept) for one in requirements)
        return _Case(seen, loaded.path, scope, demanded, refusal)

    async def _judged(
        self, case: _Case, digests: tuple[str, ...], found: Sequence[Signature]
    ) -> Answer:
        question = Question(
            reference=str(case.reference),
            digests=digests,
            demands=case.demands,
            signatures=tuple(found),
            now_s=self._clock.wall_ns() // _NS,
        )
        answer = await self._judges.ask(question)
        if answer.is_policy_fault:
            raise PolicyInvalid(
                f"policy {case.path}: {answer.reason}", image=case.name, scope=case.scope
            )
        if answer.accepted:
            self._verdicts[_key(case, digests)] = answer.valid_until_s
            while len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
            _log.info("image is signed", image=case.name, policy=str(case.path), scope=case.scope)
        return answer

    def _is_settled(self, case: _Case, digests: tuple[str, ...]) -> bool:
        key = _key(case, digests)
        if key not in self._verdicts:
            return False
        until_s = self._verdicts[key]
        if until_s is not None and until_s <= self._clock.wall_ns() // _NS:
            del self._verdicts[key]
            return False
        self._verdicts.move_to_end(key)
        return True

    async def _fetch_for_others(
        self, reference: Reference, digests: Sequence[Digest], credential: Keyring | None
    ) -> Found:
        """Signatures that another namespace's policy demands: its pods may run this very image."""
        if not self._files.by_namespace:
            return {}
        found: Found = {}
        try:
            if await asyncio.to_thread(self._files.any_demands, reference):
                for digest in digests:
                    found[str(digest)] = await fetch_signatures(
                        self._source, reference, digest, credential
                    )
        except PodwrightError as error:
            _log.warning("signatures cannot be fetched", image=str(reference), error=error)
        return found

    async def _fetch_late(
        self, reference: Reference, digests: Sequence[str], namespace: str
    ) -> tuple[tuple[Signature, ...], PodwrightError | None]:
        """For an image that came before the policy or by hand: ask now, as the node itself.

        What there is, and why there may be more.
        """
        found: Found = {}
        failure: PodwrightError | None = None
        try:
            async with asyncio.timeout(_LATE_FETCH_S):
                keyring = await self._keyrings.of_node(reference, namespace)
                for text in digests:
                    found[text] = await fetch_signatures(
                        self._source, reference, Digest.parse(text), keyring
                    )
        except PodwrightError as error:
            failure = error
        except TimeoutError:
            failure = DeadlineExceeded(f"no answer in {_LATE_FETCH_S:g} s")
        if failure is not None:
            _log.warning("signatures cannot be fetched", image=str(reference), error=failure)
        if _all(found):
            with suppress(PodwrightError):
                await self._kept.put(reference.repository, found)
        return _all(found), failure


def _names_for(asked: str, references: Sequence[Reference]) -> list[Reference | None]:
    """The names that a container's image is judged by; see the module's text."""
    try:
        wanted = parse_reference(asked)
    except ReferenceInvalid:
        pass
    else:
        for one in references:
            same_digest = wanted.digest in (None, one.digest)
            if one.repository == wanted.repository and same_digest:
                return [wanted]
    return list(references) or [None]


def _all(found: Mapping[str, tuple[Signature, ...]]) -> tuple[Signature, ...]:
    return tuple(one for signatures in found.values() for one in signatures)


def _key(case: _Case, digests: Sequence[str]) -> tuple[str, ...]:
    demanded = hashlib.sha256(b"".join(encode(one) for one in case.demands)).hexdigest()
    return (demanded, str(case.reference), *sorted(digests))
