"""The one place that turns a failure into a gRPC status.

| class                    | code                | and so the client                               |
| ------------------------ | ------------------- | ----------------------------------------------- |
| InvalidArgument          | INVALID_ARGUMENT    | changes the request                             |
| NotFound                 | NOT_FOUND           | forgets the object; the kubelet branches on it  |
| AlreadyExists            | ALREADY_EXISTS      | uses another name or attempt                    |
| FailedPrecondition, Busy | FAILED_PRECONDITION | changes the object's state, then repeats        |
| Unsupported              | FAILED_PRECONDITION | changes the node (kernel, runtime, controller)  |
| Unimplemented            | UNIMPLEMENTED       | does without the whole RPC, or falls back       |
| Denied                   | PERMISSION_DENIED   | gives the daemon or itself more rights          |
| Unauthenticated          | UNAUTHENTICATED     | sends other credentials                         |
| Unavailable              | UNAVAILABLE         | repeats later                                   |
| DeadlineExceeded         | DEADLINE_EXCEEDED   | gives more time; an exec probe counts as failed |
| Cancelled                | CANCELLED           | nothing: a newer request took its place         |
| ResourceExhausted        | RESOURCE_EXHAUSTED  | frees space, or asks for less                   |
| Corrupt                  | DATA_LOSS           | removes the object and makes it anew            |
| RegistryUnavailable      | UNKNOWN             | shows the kubelet's own reason (see below)      |
| SignatureValidationFailed | UNKNOWN            | the same                                        |
| Internal, anything else  | INTERNAL            | reads the daemon's log                          |

Why Unsupported is not UNIMPLEMENTED: clients take UNIMPLEMENTED for "this server does not have the
RPC" and stop calling it (the kubelet falls back from the streaming lists for good), while a missing
controller or profile concerns one request on one node.

Why RegistryUnavailable and SignatureValidationFailed are UNKNOWN: the kubelet has reasons of its
own for them, which it recognises by the beginning of the text, and only its client leaves the text
of UNKNOWN as it is; for every other code gRPC's own words come first.

What a client sees is the error's own text: message, fields and hint, never the replay line, never a
traceback, never the text of an exception nobody planned for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import grpc

from imageservice.errors import RegistryUnavailable, SignatureValidationFailed
from sandbox.host import errors
from sandbox.host.journal import redact_text

if TYPE_CHECKING:
    from collections.abc import Mapping

#: gRPC sends the text as a trailer; clients allow all metadata together 8 KiB, and text that is not
#: ASCII grows threefold on the wire.
TEXT_LIMIT: Final = 2048

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Unimplemented(errors.PodwrightError):
    """This version does not have the RPC at all."""


CODES: Final[Mapping[type[errors.PodwrightError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
    RegistryUnavailable: grpc.StatusCode.UNKNOWN,
    SignatureValidationFailed: grpc.StatusCode.UNKNOWN,
}

#: Failures that are the node's, not the request's: an operator should see them.
OURS: Final = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


def code_of(error: errors.PodwrightError) -> grpc.StatusCode:
    """The code of the nearest class in the table."""
    return next(
        (CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL
    )


def text_of(error: errors.PodwrightError) -> str:
    """What the client is told: one line, bounded, without what only its owner may know.

    A kubelet puts the text into events of the pod, which more people may read than its secrets.
    """
    text = redact_text(_UNPRINTABLE.sub(" ", str(error)[: 2 * TEXT_LIMIT]))
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
