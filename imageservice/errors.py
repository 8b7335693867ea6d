"""What can go wrong with images, under the host classes that say what the caller can do about it.

The kubelet recognises two causes by text alone: a pull error whose message begins with
`RegistryUnavailable` is shown to users as "registry unavailable" and not as a broken image
(`RegistryUnavailable.PREFIX`), and one that begins with `SignatureValidationFailed` as an image
that the node's policy refuses. Everything else is told apart by class.
"""

from __future__ import annotations

from typing import Final

from sandbox.host.errors import (
    Corrupt,
    DeadlineExceeded,
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)


class ReferenceInvalid(InvalidArgument):
    """The text is no image reference."""


class DigestInvalid(InvalidArgument):
    """The text is no digest, or names an algorithm we do not accept."""


class CredentialInvalid(InvalidArgument):
    """The AuthConfig of a request cannot be read (never quotes it)."""


class AuthFileInvalid(FailedPrecondition):
    """A file of the node's own credentials cannot be used; names file and entry, quotes neither."""


class HostsConfigInvalid(InvalidArgument):
    """A hosts.toml, or a certificate it names, cannot be used; names the file and the key.

    What the file says may be long; the error is not.
    """

    _LIMIT_CHARS: Final = 500

    def __init__(
        self, message: str, *, hint: str = "", replay: str = "", **fields: str | int | None
    ) -> None:
        """See `PodwrightError`."""
        if len(message) > self._LIMIT_CHARS:
            message = f"{message[: self._LIMIT_CHARS]}..."
        super().__init__(message, hint=hint, replay=replay, **fields)


class ImageNotFound(NotFound):
    """No registry that was asked has this repository, tag, manifest or blob."""


class PlatformNotFound(NotFound):
    """The image exists, but not for this machine's operating system and architecture."""


class ManifestInvalid(Corrupt):
    """A manifest, index or image config is malformed, ambiguous or contradicts itself."""


class DigestMismatch(Corrupt):
    """Bytes do not have the digest they were asked for by."""


class BlobMismatch(DigestMismatch):
    """A layer's blob, as it was fetched, is not what its manifest names; another try may help."""


class SizeMismatch(Corrupt):
    """A body is longer or shorter than its descriptor says."""


class TooLarge(ResourceExhausted):
    """A document is larger than the stated limit; never read to its end."""


class ImageUnsupported(Unsupported):
    """A media type, schema or layer kind that this runtime does not run."""


class RegistryDenied(Denied):
    """The registry knows who asks and refuses (403)."""


class RegistryUnauthenticated(Unauthenticated):
    """The registry or its token server did not accept the credentials, or wants some (401)."""


class CredentialHelperFailed(RegistryUnauthenticated):
    """The program that has the credentials for a registry failed, or may not be run."""


class RegistryThrottled(ResourceExhausted):
    """The registry asks to slow down (429).

    Attributes:
        is_transient: whether the same request may succeed a little later.
        retry_after_s: how long the registry asks to wait, if it said so.
    """

    is_transient: bool = True
    retry_after_s: float | None = None


class RegistryUnavailable(Unavailable):
    """The registry cannot be reached, or answers with its own failure (5xx).

    Attributes:
        is_transient: whether the same request may succeed a little later.
        is_unreachable: whether no HTTP answer came at all.
        retry_after_s: how long the registry asks to wait, if it said so.
    """

    is_transient: bool = True
    is_unreachable: bool = False
    retry_after_s: float | None = None
    #: What the kubelet looks for at the start of the message (cri-api pkg/errors, v0.37).
    PREFIX: Final = "RegistryUnavailable: "

    def __init__(
        self, message: str, *, hint: str = "", replay: str = "", **fields: str | int | None
    ) -> None:
        if not message.startswith(self.PREFIX):
            message = self.PREFIX + message
        super().__init__(message, hint=hint, replay=replay, **fields)


class RegistryUntrusted(RegistryUnavailable):
    """TLS to the registry failed: expired, self-signed, wrong name, unknown authority."""

    is_transient = False


class RegistryProtocolError(RegistryUnavailable):
    """The registry's answer breaks HTTP or the distribution protocol, or is refused by policy."""

    is_transient = False


class RegistryBlocked(Denied):
    """The operator has forbidden images of that place (`image.blocked_registries`)."""


class SignatureValidationFailed(Denied):
    """The operator's policy does not let this image be kept or run."""

    #: What the kubelet looks for at the start of the message (cri-api pkg/errors, v0.37).
    PREFIX: Final = "SignatureValidationFailed: "

    def __init__(
        self, message: str, *, hint: str = "", replay: str = "", **fields: str | int | None
    ) -> None:
        if not message.startswith(self.PREFIX):
            message = self.PREFIX + message
        super().__init__(message, hint=hint, replay=replay, **fields)


class PolicyInvalid(SignatureValidationFailed):
    """The policy, or a key it names, cannot be used; nothing is accepted until it can."""


class PullStalled(DeadlineExceeded):
    """A transfer made too little progress for too long."""
