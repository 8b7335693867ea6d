"""Whether the store is what it was, over the daemon's socket: `podwright.v1.Store`, Verify.

Asked with one JSON document, answered with how far it is a few times a second, and at last with
everything that is wrong. Whoever stops listening ends it; a repair that has begun ends at the next
image.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from cri.rpc.method import Method, StreamCall
from cri.rpc.progress import gathered
from imageservice.verify import Checked, Finding
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cri.rpc.ports import Images
    from sandbox.host.clock import Clock

SERVICE: Final = "podwright.v1.Store"


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether what is found is to be mended."""

    repair: bool = False


class FoundBad(msgspec.Struct, frozen=True, omit_defaults=True):
    """See `imageservice.verify.Finding`."""

    kind: str
    what: str
    problem: str
    images: list[str] = []
    outcome: str = ""


class VerifyUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far it is, or the end with everything that is wrong."""

    layers: int = 0
    of_layers: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    findings: list[FoundBad] | None = None


def verify_method(images: Images, clock: Clock) -> Method:
    """The method, for the server's list."""

    def verify(data: bytes) -> StreamCall:
        try:
            request = msgspec.json.decode(data, type=VerifyRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the {len(data)} bytes sent are no VerifyRequest") from error
        return StreamCall({"repair": str(request.repair)}, lambda: _verify(images, clock, request))

    return Method(service=SERVICE, name="Verify", open=verify, streams=True)


async def _verify(
    images: Images, clock: Clock, request: VerifyRequest
) -> AsyncGenerator[bytes, None]:
    latest: list[Checked] = []

    def take() -> list[Checked]:
        last = latest[-1:]
        latest.clear()
        return last

    parts = gathered(
        lambda tell: images.verifier.verify(repair=request.repair, on_progress=tell),
        latest.append,
        take,
        clock,
    )
    async with aclosing(parts):
        async for part in parts:
            steps = [one for one in part if isinstance(one, Checked)]
            for one in steps:
                yield msgspec.json.encode(
                    VerifyUpdate(one.layers, one.of_layers, one.done_bytes, one.total_bytes)
                )
            if not steps:
                findings = [
                    FoundBad(f.kind, f.what, f.problem, list(f.images), f.outcome)
                    for f in part
                    if isinstance(f, Finding)
                ]
                yield msgspec.json.encode(VerifyUpdate(findings=findings))
