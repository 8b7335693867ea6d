"""Which hosts are asked, in which order and how often; and what the failure of all of them says.

Hosts come from `hosts.py` in the operator's order. A mirror gets one try while another host is left
(a dead mirror must cost seconds, not the retry policy); the registry itself, and whoever is last,
gets the whole policy. A host that could not be reached is asked last for half a minute, so that the
layers of one image do not each wait for the same dead mirror. When all fail, the registry's own
answer is the error, and what the others said is in `tried`.

A transfer that had moved on before it broke or stalled is asked for again, however long that took:
the connection is what failed. One that never moved has used its patience up.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from imageservice.errors import (
    DigestMismatch,
    HostsConfigInvalid,
    ImageNotFound,
    PullStalled,
    RegistryDenied,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    SizeMismatch,
    TooLarge,
)
from imageservice.registry.patience import Queued
from imageservice.registry.retry import NS_PER_S, delay_s, retry_reason
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imageservice.credentials import Credential, Keyring
    from imageservice.progress import TransferObserver
    from imageservice.reference import Reference
    from imageservice.registry.exchange import Question
    from imageservice.registry.hosts import Endpoint, HostsDirectory
    from imageservice.registry.origins import Origin
    from imageservice.settings import ImageSettings
    from sandbox.host.clock import Clock
    from sandbox.host.errors import PodwrightError

_T = TypeVar("_T")
#: After a host could not be reached, others are asked before it for this long.
UNREACHABLE_REST_S: Final = 30.0
#: What one host may fail with while another may still succeed.
_NEXT_HOST: Final = (
    DigestMismatch,
    ImageNotFound,
    PullStalled,
    RegistryDenied,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    SizeMismatch,
    TooLarge,
)
_log = get_logger("imageservice.registry")


class HostOrder:
    """Asks the hosts of a registry; one per client, on its event loop."""

    def __init__(
        self,
        hosts: HostsDirectory,
        settings: ImageSettings,
        *,
        clock: Clock,
        observer: TransferObserver,
        random_unit: Callable[[], float],
    ) -> None:
        self._hosts = hosts
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._random_unit = random_unit
        self._resting_until_ns: dict[Origin, int] = {}

    async def ask(
        self,
        reference: Reference,
        credential: Keyring | None,
        capability: frozenset[str],
        question: Question,
        ask: Callable[[Endpoint, Question], Awaitable[_T]],
        *,
        origin_only: bool = False,
        progress_bytes: Callable[[], int] = lambda: 0,
    ) -> _T:
        """The first answer of the hosts in order; see the module's text.

        Args:
            reference: whose registry's hosts.
            credential: shown to whom it is meant for.
            capability: what a host must be trusted with.
            question: what to ask.
            ask: asks one host.
            origin_only: leave the mirrors out.
            progress_bytes: how far a transfer is, for the retry policy.

        Raises:
            HostsConfigInvalid: no host has the capability.
            PodwrightError: what the registry itself answered, with what the others said.
        """
        every = await asyncio.to_thread(self._hosts.endpoints, reference.domain)
        able = [endpoint for endpoint in every if capability <= endpoint.capabilities]
        if origin_only:
            # Without the registry itself (an air-gapped node) the last host stands for it.
            able = [endpoint for endpoint in able if endpoint.is_origin] or able[-1:]
        if not able:
            raise HostsConfigInvalid(
                f"no host of {reference.domain} has the capabilities "
                f"{', '.join(sorted(capability))} in hosts.toml"
            )
        now_ns = self._clock.monotonic_ns()
        order = sorted(able, key=lambda host: self._resting_until_ns.get(host.origin, 0) > now_ns)
        failures: dict[Endpoint, PodwrightError] = {}
        for endpoint in order:
            is_last = endpoint is order[-1]
            try:
                asked = replace(
                    question,
                    credential=await _shown_to(endpoint, reference, credential),
                    connect_timeout_s=self._settings.connect_timeout_s
                    if is_last
                    else self._settings.mirror_connect_timeout_s,
                )
                if is_last or endpoint.is_origin:
                    return await self._ask_patiently(endpoint, asked, ask, progress_bytes)
                return await ask(endpoint, asked)
            except _NEXT_HOST as error:
                self._note_failure(endpoint, error)
                failures[endpoint] = error
        raise _verdict(able, failures, question)

    async def _ask_patiently(
        self,
        endpoint: Endpoint,
        question: Question,
        ask: Callable[[Endpoint, Question], Awaitable[_T]],
        progress_bytes: Callable[[], int],
    ) -> _T:
        """Ask one host by the retry policy; a transfer that moved on starts counting anew."""
        tries, spent_ns, before_bytes, asked = 0, 0, progress_bytes(), 0
        queued = Queued(self._clock)
        question = replace(question, waiting=queued.waiting)
        while True:
            started_ns = self._clock.monotonic_ns()
            asked += 1
            try:
                return await ask(endpoint, question)
            except (RegistryUnavailable, RegistryThrottled, PullStalled) as error:
                moved_on = progress_bytes() - before_bytes >= self._settings.min_progress_bytes
                if asked > 1:
                    error.fields = {**error.fields, "tries": asked}
                if isinstance(error, PullStalled) and not moved_on:
                    raise
                if moved_on:
                    tries, spent_ns, before_bytes = 0, 0, progress_bytes()
                    queued.take_ns()
                else:
                    lasted_ns = self._clock.monotonic_ns() - started_ns
                    spent_ns += max(0, lasted_ns - queued.take_ns())
                tries += 1
                wait_s = delay_s(
                    error,
                    self._settings.retry,
                    tries=tries,
                    spent_s=spent_ns / NS_PER_S,
                    random_unit=self._random_unit(),
                )
                if wait_s is None:
                    raise
                self._observer.asked_again(retry_reason(error))
                _log.warning(
                    "asking a registry again",
                    host=str(endpoint.origin),
                    wanted=question.what,
                    reason=error.message,
                    tries=tries,
                    wait_s=round(wait_s, 3),
                )
            await self._clock.sleep(wait_s)

    def _note_failure(self, endpoint: Endpoint, error: PodwrightError) -> None:
        if isinstance(error, RegistryUnavailable) and error.is_unreachable:
            until_ns = self._clock.monotonic_ns() + int(UNREACHABLE_REST_S * NS_PER_S)
            if len(self._resting_until_ns) >= 1024:
                self._resting_until_ns.clear()
            self._resting_until_ns[endpoint.origin] = until_ns


async def _shown_to(
    endpoint: Endpoint, reference: Reference, credential: Keyring | None
) -> Credential | None:
    """What of `credential` this endpoint may see."""
    if credential is None:
        return None
    names = {endpoint.origin.netloc}
    if endpoint.is_origin:
        names.add(reference.domain)
    return await credential.shown_to(names, reference.path, is_origin=endpoint.is_origin)


def _verdict(
    configured: list[Endpoint], failures: dict[Endpoint, PodwrightError], question: Question
) -> PodwrightError:
    """One error for all hosts: the registry's own where it was asked, else the last host's."""
    chosen = next((host for host in configured if host.is_origin), configured[-1])
    error = failures[chosen]
    fields = dict(error.fields)
    if question.what not in error.message:
        fields["wanted"] = question.what
    fields["host"] = str(chosen.origin)
    others = [
        f"{host.origin}: {_said(failures[host])}" for host in configured if host is not chosen
    ]
    if others:
        fields["tried"] = "; ".join(others)
    error.fields = fields
    return error


def _said(error: PodwrightError) -> str:
    text, tries = error.message.removeprefix(RegistryUnavailable.PREFIX), error.fields.get("tries")
    return text if tries is None else f"{text} ({tries} tries)"
