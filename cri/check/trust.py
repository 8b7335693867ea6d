"""Findings about the operator's policy: which images this node accepts, and whether it can tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from imageservice.errors import PolicyInvalid
from imageservice.trust.judge import judge
from imageservice.trust.model import Question
from imageservice.trust.policy import Accept, Reject, Sigstore, Unsupported
from imageservice.trust.policy_files import PolicyFiles, demands

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageservice.settings import ImageSettings
    from imageservice.trust.policy import Policy, Requirement, Requirements
    from imageservice.trust.policy_files import Loaded

GROUP: Final = "images"
NAME: Final = "signature policy"
#: Where podman, skopeo and CRI-O look.
CUSTOMARY: Final = Path("/etc/containers/policy.json")
_MEND: Final = "mend it; until then every image it holds for is refused"
_SHOWN: Final = 5


def trust(settings: ImageSettings, *, customary: Path = CUSTOMARY) -> list[Finding]:
    """What the node's policies say; reads them and every key they name. Blocks."""
    said = list(_policies(settings))
    if settings.signature_policy is None and settings.signature_policy_dir is None:
        said.append(_none(customary))
    if settings.blocked_registries:
        blocked = ", ".join(settings.blocked_registries)
        said.append(Finding(GROUP, "blocked registries", Level.OK, blocked))
    return said


def _none(customary: Path) -> Finding:
    detail = "none: every image is accepted"
    try:
        other = PolicyFiles(customary, None).load("")
    except PolicyInvalid:
        other = None
    if other is None or _accepts_everything(other.policy):
        return Finding(GROUP, NAME, Level.OK, detail)
    remedy = f'set image.signature_policy = "{customary}"'
    return Finding(
        GROUP, NAME, Level.WARNING, f"{detail}; {customary} is there and not used", remedy
    )


def _accepts_everything(policy: Policy) -> bool:
    every = (policy.default, *policy.docker.values())
    return all(isinstance(one, Accept) for requirements in every for one in requirements)


def _policies(settings: ImageSettings) -> Iterator[Finding]:
    files = PolicyFiles(settings.signature_policy, settings.signature_policy_dir)
    names = [""] if settings.signature_policy is not None else []
    directory = settings.signature_policy_dir
    if directory is not None:
        if directory.is_dir():
            names += sorted(path.stem for path in directory.glob("*.json"))
        else:
            yield Finding(
                GROUP,
                NAME,
                Level.WARNING,
                f"{directory} does not exist: no namespace has a policy of its own",
                "make it, or leave image.signature_policy_dir empty",
            )
    for namespace in names:
        try:
            loaded = files.load(namespace)
        except PolicyInvalid as error:
            yield Finding(GROUP, NAME, Level.ERROR, _plain(error), _MEND)
            continue
        if loaded is not None:
            yield _finding(loaded)


def _finding(loaded: Loaded) -> Finding:
    every = {"default": loaded.policy.default, **loaded.policy.docker}
    for requirements in every.values():
        fault = _fault(requirements)
        if fault:
            return Finding(GROUP, NAME, Level.ERROR, f"{loaded.path}: {fault}", _MEND)
    detail = f"{loaded.path}: {_summary(loaded.policy)}"
    lost = _scopes(every, Unsupported)
    if lost:
        return Finding(
            GROUP,
            NAME,
            Level.WARNING,
            f"{detail}; all images of {_listed(lost)} are refused: signedBy (GPG) is not supported",
            "sign them with cosign and use sigstoreSigned, or give these scopes other requirements",
        )
    return Finding(GROUP, NAME, Level.OK, detail)


def _fault(requirements: Requirements) -> str:
    """What is wrong with the keys: they are read even for an image without signatures."""
    try:
        question = Question(
            reference="check/check:check",
            digests=(),
            demands=demands(requirements),
            signatures=(),
            now_s=0,
        )
        answer = judge(question)
    except PolicyInvalid as error:
        return _plain(error)
    return answer.reason if answer.is_policy_fault else ""


def _summary(policy: Policy) -> str:
    word = "signed images" if any(isinstance(one, Sigstore) for one in policy.default) else ""
    if any(isinstance(one, Reject | Unsupported) for one in policy.default):
        word = "nothing"
    said = [f"accepts {word or 'everything'} by default"]
    for kind, words in (
        (Accept, "accepts all"),
        (Reject, "rejects all"),
        (Sigstore, "demands signatures"),
    ):
        scopes = _scopes(policy.docker, kind)
        if scopes:
            said.append(f"{words} of {_listed(scopes)}")
    return ", ".join(said)


def _scopes(every: Mapping[str, Requirements], kind: type[Requirement]) -> list[str]:
    return [
        scope or "any other registry"
        for scope, requirements in every.items()
        if any(isinstance(one, kind) for one in requirements)
    ]


def _listed(scopes: list[str]) -> str:
    rest = len(scopes) - _SHOWN
    return ", ".join(scopes[:_SHOWN]) + (f" and {rest} others" if rest > 0 else "")


def _plain(error: PolicyInvalid) -> str:
    return error.message.removeprefix(PolicyInvalid.PREFIX)
