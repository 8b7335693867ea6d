"""When to ask again and how long to wait (pure): the table behind every second try.

Retried: what the registry calls temporary (408, 429, 5xx) and what looks like the network's fault
(refused, reset, timed out, cut short, stalled). Not retried: an untrusted certificate, a broken
protocol, a refusal, a missing image; the answer would be the same.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from imageservice.errors import (
    ImageNotFound,
    PullStalled,
    RegistryDenied,
    RegistryProtocolError,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
)

if TYPE_CHECKING:
    from imageservice.progress import RetryReason
    from imageservice.settings import RetryPolicy
    from sandbox.host.errors import PodwrightError

NS_PER_S: Final = 1_000_000_000
#: Codes of the distribution specification and Docker's; only these are quoted from an answer.
KNOWN_CODES: Final = frozenset(
    {
        "BLOB_UNKNOWN", "DENIED", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN",
        "MANIFEST_UNVERIFIED", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "TAG_INVALID",
        "TOOMANYREQUESTS", "UNAUTHORIZED", "UNAVAILABLE", "UNKNOWN", "UNSUPPORTED",
    }
)  # fmt: skip


def delay_s(
    error: PodwrightError, policy: RetryPolicy, *, tries: int, spent_s: float, random_unit: float
) -> float | None:
    """How long to wait before asking again, or None to give up.

    Args:
        error: what the last try ended with.
        policy: see `RetryPolicy`.
        tries: how many were made, at least 1.
        spent_s: how long these took, without the waits between them.
        random_unit: a random number in [0, 1).
    """
    asked: float | None = None
    if isinstance(error, RegistryUnavailable | RegistryThrottled):
        if not error.is_transient:
            return None
        asked = error.retry_after_s
    elif not isinstance(error, PullStalled):
        return None
    if tries >= policy.attempts or spent_s >= policy.patience_s:
        return None
    own = min(policy.first_delay_s * float(1 << min(tries - 1, 30)), policy.max_delay_s)
    own -= own * policy.jitter * random_unit
    if asked is None:
        return own
    if asked > policy.retry_after_cap_s:
        return None
    # Everyone was told the same second: come a little later than told, never earlier.
    return asked + own * 0.1


def retry_reason(error: PodwrightError) -> RetryReason:
    """The kind of a failure that is answered by asking again."""
    return "throttled" if isinstance(error, RegistryThrottled) else "unavailable"


def parse_retry_after(text: str, *, now_wall_ns: int) -> float | None:
    """Seconds to wait that a Retry-After header asks for, or None when it says nothing."""
    if not text or len(text) > 64:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now_wall_ns / NS_PER_S)


def failure_for_status(
    status: int, *, what: str, codes: tuple[str, ...] = (), retry_after_s: float | None = None
) -> PodwrightError:
    """The error that an answer without success stands for.

    Args:
        status: HTTP status.
        what: what was asked for, naming the image.
        codes: error codes of the body.
        retry_after_s: see `parse_retry_after`.
    """
    known = ", ".join(code for code in codes if code in KNOWN_CODES)
    said = f"{status} {known}".strip()
    if retry_after_s is not None:
        said += f", asks to wait {retry_after_s:.0f} s"
    match status:
        case 404 | 410:
            return ImageNotFound(f"{what} does not exist ({said})")
        case 401:
            return RegistryUnauthenticated(
                f"{what}: the registry wants other credentials ({said})",
                hint="check the pull secret, and the name: some registries answer so for a "
                "repository that does not exist",
            )
        case 403:
            return RegistryDenied(f"{what}: the registry refuses access ({said})")
        case 429:
            throttled = RegistryThrottled(
                f"{what}: the registry's rate limit is reached ({said})",
                hint="pull with credentials, through a mirror, or less often",
            )
            throttled.retry_after_s = retry_after_s
            return throttled
    if status == 408 or status >= 500:
        unavailable = RegistryUnavailable(f"{what}: the registry fails ({said})")
        unavailable.retry_after_s = retry_after_s
        return unavailable
    return RegistryProtocolError(f"{what}: unexpected answer ({said})")
