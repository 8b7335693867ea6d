"""The gate with real parts: a registry on loopback, SQLite, and the process that judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.digest import Digest
from imageservice.errors import (
    DigestMismatch,
    PolicyInvalid,
    RegistryBlocked,
    RegistryUnavailable,
    SignatureValidationFailed,
)
from imageservice.keyrings import NodeKeyrings
from imageservice.reference import Reference, parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.settings import ImageSettings, RetryPolicy
from imageservice.trust.gate import TrustGate
from imageservice.trust.kept import KeptSignatures
from imageservice.trust.model import Signature
from sandbox.host.database import Connection, Database
from sandbox.host.errors import InvalidArgument
from sandbox.host.processes import Finished, HostProcessRunner
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FOREVER, Alter, FakeRegistry, Status
from tests.kit.signing import (
    EMAIL,
    Authority,
    attachment,
    new_key,
    payload,
    pem,
    public_pem,
    signature_tag,
    signed,
)

ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
KEY = new_key()
REPOSITORY = "team/app"


class CountingRunner(HostProcessRunner):
    """Counts the processes that judge, or lets them fail."""

    def __init__(self) -> None:
        super().__init__()
        self.judged = 0
        self.failure: Finished | Exception | None = None

    async def run(self, argv, **options):  # type: ignore[no-untyped-def]
        self.judged += 1
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure or await super().run(argv, **options)


@dataclass
class Site:
    """A registry, a node's policy and its gate."""

    registry: FakeRegistry
    root: Path
    gate: TrustGate
    kept: KeptSignatures
    runner: CountingRunner
    clock: FakeClock

    @property
    def reference(self) -> Reference:
        return parse_reference(self.registry.reference(f"{REPOSITORY}:1"))

    def policy(self, *requirements: object, namespace: str = "", default: object = REJECT) -> None:
        document = {
            "default": [default],
            "transports": {"docker": {f"{self.registry.domain}/team": list(requirements)}},
        }
        path = self.root / (f"namespaces/{namespace}.json" if namespace else "policy.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))

    def by_key(self, **more: object) -> dict[str, object]:
        path = self.root / "key.pub"
        if not path.exists():
            path.write_bytes(public_pem(KEY))
        return {"type": "sigstoreSigned", "keyPath": str(path), **more}

    def attach(self, digest: str, *signatures: Signature) -> None:
        image = attachment(signatures)
        self.registry.blobs.update(image.blobs)
        ((media_type, body),) = image.manifests.values()
        tag = signature_tag(digest)
        self.registry.add_manifest(REPOSITORY, body, tag=tag, media_type=media_type)

    def signature(self, digest: str, name: str = "") -> Signature:
        return signed(KEY, payload(name or str(self.reference), digest))

    async def pull(
        self, manifest: str, named: str = "", *, reference: Reference | None = None,
        namespace: str = "", keep: bool = True,
    ) -> dict[str, tuple[Signature, ...]]:  # fmt: skip
        wanted = reference or self.reference
        await self.gate.admit_name(wanted, namespace)
        found = await self.gate.admit_pull(
            wanted, Digest.parse(named or manifest), Digest.parse(manifest), None, namespace
        )
        if keep:
            await self.gate.keep(wanted, found)
        return found

    async def kept_of(self, digest: str, reference: Reference | None = None) -> int:
        """How many signatures are kept."""
        return len(await self.kept.of((reference or self.reference).repository, [digest]))

    async def use(self, manifest: str, *, asked: str = "", namespace: str = "") -> None:
        names = [str(self.reference), str(self.reference.with_digest(Digest.parse(manifest)))]
        await self.gate.admit_use(asked or str(self.reference), names, manifest, namespace)


@asynccontextmanager
async def site(root: Path, **changes: object) -> AsyncIterator[Site]:
    settings = ImageSettings(
        root=root,
        registry_config_dirs=(),
        retry=RetryPolicy(attempts=1),
        **{
            "signature_policy": root / "policy.json",
            "signature_policy_dir": root / "namespaces",
            **changes,
        },  # type: ignore[arg-type]
    )
    database = await Database.open(
        root / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    clock = FakeClock()
    source = RegistryClient(settings)
    runner = CountingRunner()
    kept = KeptSignatures(database)
    async with FakeRegistry() as registry:
        try:
            gate = TrustGate(
                settings, source, kept, NodeKeyrings(settings, runner), runner, clock=clock
            )
            yield Site(registry, root, gate, kept, runner, clock)
        finally:
            await source.close()
            await database.close()


DIGEST = "sha256:" + "ab" * 32
INDEX = "sha256:" + "cd" * 32


def refused(*words: str) -> pytest.RaisesExc[SignatureValidationFailed]:
    """Expects a refusal that the kubelet recognises and that says all these words."""
    return pytest.raises(
        SignatureValidationFailed,
        match=r"^SignatureValidationFailed: ",
        check=lambda error: all(word in str(error) for word in words),
    )


async def test_without_a_policy_nothing_is_asked(tmp_path: Path) -> None:
    async with site(tmp_path, signature_policy=None, signature_policy_dir=None) as node:
        await node.pull(DIGEST)
        await node.use(DIGEST)
        assert not node.registry.requests
        assert not node.runner.judged


async def test_a_signed_image_is_pulled_and_its_container_is_made_without_the_registry(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        await node.pull(DIGEST)
        assert node.runner.judged == 1
        asked = len(node.registry.requests)
        await node.use(DIGEST)
        assert (node.runner.judged, len(node.registry.requests)) == (1, asked)
        # A daemon that was started anew has no verdicts, but the signatures.
        again = replace(node, gate=_anew(node))
        await again.use(DIGEST)
        await again.use(DIGEST)
        assert (node.runner.judged, len(node.registry.requests)) == (2, asked)


def _anew(node: Site) -> TrustGate:
    settings = ImageSettings(
        signature_policy=node.root / "policy.json", signature_policy_dir=node.root / "namespaces"
    )
    source = node.gate._source
    return TrustGate(
        settings,
        source,
        node.kept,
        NodeKeyrings(settings, node.runner),
        node.runner,
        clock=node.clock,
    )


async def test_what_cosign_itself_has_pushed_is_accepted(tmp_path: Path) -> None:
    """See tests/golden/README.md for how it was made."""
    golden = Path(__file__).parents[3] / "golden/cosign-by-key.json"
    pushed = json.loads(golden.read_text())
    digest = pushed["digest"]
    (tmp_path / "cosign.pub").write_text(pushed["key"])
    requirement = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "cosign.pub")}
    name = {"type": "exactRepository", "dockerRepository": "127.0.0.1:5599/team/app"}
    async with site(tmp_path) as node:
        node.registry.add_blob(pushed["payload"].encode())
        tag = signature_tag(digest)
        node.registry.add_manifest(REPOSITORY, pushed["manifest"].encode(), tag=tag)
        node.policy({**requirement, "signedIdentity": name})
        await node.pull(digest)
        node.policy(requirement)
        with refused("127.0.0.1:5599/team/app", "cosign signs repositories"):
            await node.pull(digest)


async def test_an_unsigned_image_is_refused_by_name_policy_and_requirement(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(ACCEPT, node.by_key())
        with refused(
            str(node.reference), "requirement 2 (sigstoreSigned)", "no signature",
            f"policy={tmp_path}/policy.json", f"scope={node.registry.domain}/team",
        ):  # fmt: skip
            await node.pull(DIGEST)
        assert not node.runner.judged


async def test_the_index_or_the_manifest_may_be_signed(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(INDEX, node.signature(INDEX))
        await node.pull(DIGEST, INDEX)
        assert not node.registry.seen(signature_tag(DIGEST))
        other = "sha256:" + "12" * 32
        node.attach(other, node.signature(other))
        await node.pull(other, "sha256:" + "34" * 32)
        await node.use(other)


async def test_an_image_accepted_before_is_not_judged_again_until_the_policy_changes(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        await node.pull(DIGEST)
        await node.pull(DIGEST)
        assert node.runner.judged == 1
        (tmp_path / "key.pub").write_bytes(public_pem(new_key()))
        with refused("another key"):
            await node.pull(DIGEST)
        with refused("another key"):
            await node.use(DIGEST)
        (tmp_path / "key.pub").write_bytes(public_pem(KEY))
        await node.use(DIGEST)
        node.policy(REJECT)
        with refused("requirement 1 is reject"):
            await node.use(DIGEST)
        node.policy(node.by_key(), default=ACCEPT)
        (tmp_path / "policy.json").write_text("{")
        with pytest.raises(PolicyInvalid, match=r"policy\.json"):
            await node.use(DIGEST)


async def test_an_image_that_was_signed_again_needs_no_pull(tmp_path: Path) -> None:
    """As after a change of keys: what was kept at the pull is not all that there is."""
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        await node.pull(DIGEST)
        key = new_key()
        (tmp_path / "key.pub").write_bytes(public_pem(key))
        with refused("another key"):
            await node.use(DIGEST)
        node.attach(DIGEST, signed(key, payload(str(node.reference), DIGEST)))
        await node.use(DIGEST)
        requests = len(node.registry.requests)
        await node.use(DIGEST)
        assert len(node.registry.requests) == requests


async def test_another_spelling_of_the_port_escapes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, blocked_registries=("evil.org", "docker.io")) as node:
        node.policy(ACCEPT, default=ACCEPT)
        for written in (
            "evil.org:443/x:1",
            "EVIL.org:443/a/b/x@" + DIGEST,
            "registry-1.docker.io:443/library/busybox:1",
            "docker.io:443/library/busybox:1",
        ):
            with pytest.raises(RegistryBlocked):
                await node.pull(DIGEST, reference=parse_reference(written))
        assert not node.registry.requests


async def test_a_policy_that_is_a_link_to_nothing_is_not_the_laxer_one(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(ACCEPT)
        node.policy(REJECT, namespace="strict")
        strict = tmp_path / "namespaces" / "strict.json"
        strict.unlink()
        await node.use(DIGEST, namespace="strict")
        strict.symlink_to(tmp_path / "nothing")
        with pytest.raises(PolicyInvalid, match=r"strict\.json"):
            await node.use(DIGEST, namespace="strict")


async def test_a_verdict_that_rests_on_a_certificate_ends_with_it(tmp_path: Path) -> None:
    authority, key = Authority(), new_key()
    async with site(tmp_path) as node:
        now = datetime.fromtimestamp(node.clock.wall_ns() // 1_000_000_000, UTC)
        leaf = authority.issue(
            key, issuer=None, start=now - timedelta(hours=1), life=timedelta(days=1)
        )
        (tmp_path / "roots.pem").write_text(pem(authority.root))
        pki = {"caRootsPath": str(tmp_path / "roots.pem"), "subjectEmail": EMAIL}
        node.policy({"type": "sigstoreSigned", "pki": pki})
        document = payload(str(node.reference), DIGEST)
        chain = pem(authority.between, authority.root)
        node.attach(DIGEST, signed(key, document, certificate=pem(leaf), chain=chain))
        await node.pull(DIGEST)
        await node.use(DIGEST)
        assert node.runner.judged == 1
        node.clock.advance(86_400)
        with refused("does not lead"):
            await node.use(DIGEST)


async def test_rejected_and_blocked_places_are_never_asked(tmp_path: Path) -> None:
    async with site(tmp_path, blocked_registries=("*.evil.org", "127.0.0.1/x")) as node:
        node.policy(REJECT)
        with refused("requirement 1 is reject"):
            await node.pull(DIGEST)
        with pytest.raises(RegistryBlocked, match=r"\*\.evil\.org"):
            await node.pull(DIGEST, reference=parse_reference("a.b.evil.org/x:1"))
        with refused("default"):
            await node.pull(DIGEST, reference=parse_reference("busybox"))
        assert not node.registry.requests


async def test_what_is_not_supported_refuses_its_scope_alone(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a"}, default=ACCEPT)
        with refused("signedBy, which is not supported"):
            await node.pull(DIGEST)
        await node.gate.admit_name(parse_reference("busybox"), "")


async def test_a_registry_that_fails_is_not_taken_for_one_without_signatures(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        node.registry.on(".sig", Status(status=503, times=FOREVER))
        with pytest.raises(RegistryUnavailable):
            await node.pull(DIGEST)


async def test_a_signed_document_that_was_exchanged_on_the_way_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        body = payload(str(node.reference), INDEX)
        node.registry.on("/blobs/", Alter(body=body, times=FOREVER))
        with pytest.raises(DigestMismatch):
            await node.pull(DIGEST)
        assert not node.runner.judged


async def test_attachments_that_are_too_many_or_too_large_are_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        one = node.signature(DIGEST)
        node.attach(DIGEST, *[one] * 10_000)
        with refused("cannot be used"):
            await node.pull(DIGEST)
        node.attach(DIGEST, *[one] * 501)
        with refused("501 layers"):
            await node.pull(DIGEST)
        node.attach(DIGEST, signed(KEY, b" " * 70_000), one)
        with refused("cannot be used"):
            await node.pull(DIGEST)
        many = [signed(KEY, b"%d" % n + b" " * 60_000) for n in range(80)]
        node.attach(DIGEST, *many)
        with refused("bytes of signed documents"):
            await node.pull(DIGEST)
        assert not node.runner.judged
        # As many as are allowed are judged, the good one last.
        node.attach(DIGEST, *[signed(new_key(), one.payload) for _ in range(499)], one)
        await node.pull(DIGEST)
        assert await node.kept_of(DIGEST) == 500


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"{}", "application/vnd.oci.image.manifest.v1+json"),
        (b"not json", "application/vnd.oci.image.manifest.v1+json"),
        (
            b'{"schemaVersion":2,"manifests":[]}',
            "application/vnd.oci.image.index.v1+json",
        ),
        (
            b'{"schemaVersion":1,"fsLayers":[]}',
            "application/vnd.docker.distribution.manifest.v1+json",
        ),
    ],
)
async def test_what_is_no_list_of_signatures_is_refused(
    tmp_path: Path, body: bytes, media_type: str
) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        tag = signature_tag(DIGEST)
        node.registry.add_manifest(REPOSITORY, body, tag=tag, media_type=media_type)
        with refused("cannot be used", tag):
            await node.pull(DIGEST)


async def test_other_attachments_beside_signatures_are_let_be(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        image = attachment([node.signature(DIGEST)])
        node.registry.blobs.update(image.blobs)
        ((_, body),) = image.manifests.values()
        document = json.loads(body)
        stranger = {**document["layers"][0], "mediaType": "application/vnd.dsse.envelope.v1+json"}
        document["layers"].insert(0, stranger)
        body = json.dumps(document).encode()
        node.registry.add_manifest(REPOSITORY, body, tag=signature_tag(DIGEST))
        await node.pull(DIGEST)
        assert await node.kept_of(DIGEST) == 1


async def test_namespaces_have_policies_and_verdicts_of_their_own(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(REJECT)
        node.policy(node.by_key(), namespace="strict")
        node.policy(ACCEPT, namespace="lax")
        node.attach(DIGEST, node.signature(DIGEST))
        with refused("policy.json"):
            await node.pull(DIGEST)
        # The lax one needs no signature; it is kept for the strict one's containers.
        await node.pull(DIGEST, namespace="lax")
        await node.use(DIGEST, namespace="lax")
        requests = len(node.registry.requests)
        await node.use(DIGEST, namespace="strict")
        assert len(node.registry.requests) == requests
        with refused("reject"):
            await node.use(DIGEST, namespace="other")
        assert node.gate.party("lax") != node.gate.party("strict")
        with pytest.raises(InvalidArgument):
            await node.use(DIGEST, namespace="../policy")


async def test_an_image_that_came_before_the_policy_is_asked_for_late(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        with refused("no signature", "pull it again"):
            await node.use(DIGEST)
        node.attach(DIGEST, node.signature(DIGEST))
        await node.use(DIGEST)
        assert await node.kept_of(DIGEST) == 1


async def test_why_signatures_were_not_fetched_late_is_said(tmp_path: Path) -> None:
    """Without it nobody could tell this from an image that was never signed."""
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        node.registry.on(".sig", Status(status=401), Status(status=503))
        with refused(
            "no signature", "names no way to authorize", "image.auth_file", "pull it again"
        ):
            await node.use(DIGEST)
        with refused("no signature", "the registry fails (503)", "pull it again"):
            await node.use(DIGEST)
        await node.use(DIGEST)


async def test_a_late_fetch_leaves_the_file_of_one_pull_to_that_pull(tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.mkdir(mode=0o700)
    async with site(tmp_path, namespaced_auth_dir=auth) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        node.registry.challenge, node.registry.users = "Basic", {"u": "p"}
        name = hashlib.sha256(node.reference.repository.encode()).hexdigest()
        path = auth / f"shop-{name}.json"
        entry = {"username": "u", "password": "p"}
        path.write_text(json.dumps({"auths": {node.registry.domain: entry}}))
        path.chmod(0o600)
        await node.use(DIGEST, namespace="shop")
        assert path.exists()


async def test_signatures_of_one_digest_in_two_repositories_are_both_kept(tmp_path: Path) -> None:
    """Each names its own: the image is pulled from both, and both are judged without a registry."""
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        twin = parse_reference(node.registry.reference("team/twin:1"))
        node.attach(DIGEST, node.signature(DIGEST))
        twins = attachment([node.signature(DIGEST, str(twin))])
        node.registry.blobs.update(twins.blobs)
        ((media_type, body),) = twins.manifests.values()
        tag = signature_tag(DIGEST)
        node.registry.add_manifest("team/twin", body, tag=tag, media_type=media_type)
        await node.pull(DIGEST)
        await node.pull(DIGEST, reference=twin)
        asked = len(node.registry.requests)
        again = replace(node, gate=_anew(node))
        names = [str(one) for one in (node.reference, twin)]
        for name in names:
            await again.gate.admit_use(name, names, DIGEST, "")
        assert len(node.registry.requests) == asked


async def test_a_container_is_judged_by_what_its_author_wrote(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        await node.pull(DIGEST)
        domain = node.registry.domain
        # The name it was signed under, its digest, its id, no name at all: all mean this image.
        for asked in (str(node.reference), f"{domain}/{REPOSITORY}@{DIGEST}", "ab" * 32, "ff"):
            await node.use(DIGEST, asked=asked)
        # A tag of the same repository that it was not signed for.
        with refused("which matchRepoDigestOrExact does not accept"):
            await node.use(DIGEST, asked=f"{domain}/{REPOSITORY}:2")
        # The name of a place that accepts everything does not help: the image is not from there.
        document = json.loads((tmp_path / "policy.json").read_text())
        document["transports"]["docker"]["free.example.com"] = [ACCEPT]
        document["transports"]["docker"][f"{domain}/team"] = [REJECT]
        (tmp_path / "policy.json").write_text(json.dumps(document))
        with refused("reject"):
            await node.use(DIGEST, asked="free.example.com/x:1")
        # Nor does the name of a digest that is not its own.
        document["transports"]["docker"][f"{domain}/{REPOSITORY}@{INDEX}"] = [ACCEPT]
        (tmp_path / "policy.json").write_text(json.dumps(document))
        with refused("reject"):
            await node.use(DIGEST, asked=f"{domain}/{REPOSITORY}@{INDEX}")


async def test_an_image_without_a_name_has_the_default(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        for default, good in ((ACCEPT, True), (REJECT, False), (node.by_key(), False)):
            node.policy(ACCEPT, default=default)
            if good:
                await node.gate.admit_use("", [], DIGEST, "")
            else:
                with refused("it has no name"):
                    await node.gate.admit_use("", [], DIGEST, "")


async def test_a_judge_that_fails_is_a_refusal(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        node.policy(node.by_key())
        node.attach(DIGEST, node.signature(DIGEST))
        for failure in (
            Finished((), -9, b"", b"", 0),
            Finished((), 1, b"", b"Traceback\nMemoryError", 0),
            Finished((), 0, b"", b"", 0),
            Finished((), 0, b'{"accepted": 1}', b"", 0),
            InvalidArgument("no such program"),
        ):
            node.runner.failure = failure
            with refused("cannot be verified"):
                await node.pull(DIGEST)
        node.runner.failure = None
        await node.pull(DIGEST)


async def test_signatures_go_with_their_image_or_its_last_name_there(tmp_path: Path) -> None:
    async with site(tmp_path) as node:
        signature = (node.signature(DIGEST),)
        image, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
        for repository in ("a/b", "a/tagged", "a/gone"):
            await node.kept.put(repository, {DIGEST: signature, INDEX: signature})

        def name_them(db: Connection) -> None:
            add = "INSERT INTO images (id, manifest, size_bytes, created_ns) VALUES (?, ?, 1, 1)"
            db.executemany(add, [(image, DIGEST), (other, "sha256:" + "3" * 64)])
            named = [(f"a/b@{INDEX}", image), ("a/tagged:1", image), ("a/gone:1", other)]
            db.executemany("INSERT INTO names (name, image_id) VALUES (?, ?)", named)

        await node.kept._database.write(name_them)
        await node.gate.sweep()
        left = {
            repository: [len(await node.kept.of(repository, [one])) for one in (DIGEST, INDEX)]
            for repository in ("a/b", "a/tagged", "a/gone")
        }
        assert left == {"a/b": [1, 1], "a/tagged": [1, 0], "a/gone": [0, 0]}
        await node.kept.put("a/b", {INDEX: ()})
        assert await node.kept.of("a/b", [INDEX]) == ()
        assert len(await node.kept.of("a/b", [DIGEST])) == 1


async def test_signatures_of_an_older_catalog_are_kept_by_every_name_of_their_image(
    tmp_path: Path,
) -> None:
    path, image = tmp_path / "old.db", "sha256:" + "1" * 64
    before = next(n for n, sql in enumerate(MIGRATIONS) if "kept_signatures" in sql)
    old = await Database.open(path, migrations=MIGRATIONS[:before], application_id=APPLICATION_ID)

    def fill(db: Connection) -> None:
        add = "INSERT INTO images (id, manifest, size_bytes, created_ns) VALUES (?, ?, 1, 1)"
        db.execute(add, (image, DIGEST))
        named = [(f"h/a@{INDEX}", image), (f"h/b@{DIGEST}", image), ("h/c:1", image)]
        db.executemany("INSERT INTO names (name, image_id) VALUES (?, ?)", named)
        add = "INSERT INTO signatures (digest, position, payload, annotations) VALUES (?, 0, ?, ?)"
        db.executemany(add, [(one, one.encode(), "{}") for one in (DIGEST, INDEX)])

    await old.write(fill)
    await old.close()
    new = await Database.open(path, migrations=MIGRATIONS, application_id=APPLICATION_ID)
    kept = KeptSignatures(new)
    found = {
        repository: [one.payload.decode() for one in await kept.of(repository, [DIGEST, INDEX])]
        for repository in ("h/a", "h/b", "h/c")
    }
    await new.close()
    assert found == {"h/a": [DIGEST, INDEX], "h/b": [DIGEST], "h/c": []}
