"""One gRPC method as the server sees it: bytes in, bytes out, and what to write into the log.

The server knows no protobuf, so that wrong bytes, wrong values and failures all take one path (an
error class, one table of codes), and so that a list may hand out bytes it has kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping


@dataclass(frozen=True, slots=True)
class UnaryCall:
    """A request that was understood; `answer` does the work and gives the serialised response.

    Attributes:
        subject: which objects the call is about, for the log; bounded, never a secret.
    """

    subject: Mapping[str, str]
    answer: Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class StreamCall:
    """The same with any number of responses."""

    subject: Mapping[str, str]
    answers: Callable[[], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, slots=True)
class UploadCall:
    """The same where the client sends more than one message: the first said what it wants."""

    subject: Mapping[str, str]
    answers: Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method by name.

    Attributes:
        service: full name of the service, such as runtime.v1.RuntimeService.
        name: the method's name on the wire.
        open: understands the request; raises InvalidArgument.
        streams: it answers with a stream.
        uploads: it is asked with a stream as well.
        quiet: asked for every second by every client; its successes are logged at debug level.
        larger: the method that gives the same answer in parts, for an answer that is too large.
    """

    service: str
    name: str
    open: Callable[[bytes], UnaryCall | StreamCall | UploadCall]
    streams: bool = False
    uploads: bool = False
    quiet: bool = False
    larger: str = ""

    @property
    def path(self) -> str:
        """The path on the wire."""
        return f"/{self.service}/{self.name}"
