"""What the daemon and an unpack worker say to each other: one JSON document a line, over a socket.

    daemon                      worker
      ── Job ──────────────────►
      ◄────────────── Progress ── a few times a second while it works
      ◄──────────────── Hungry ── it has read all that it knows to be there
      ── More ─────────────────► the answer, whenever there is more
      ◄─────── Done or Failed ── exactly one
      ── next Job, or the end of the socket: the worker exits

A worker that hears nothing for its idle time exits by itself; one that is to stop at once is
killed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from imageservice.forms import LayerForm  # noqa: TC001 - msgspec reads the annotations

#: Longest line either side accepts: 4096 implied directories of 4 KiB each, escaped twofold.
MAX_LINE_BYTES: Final = 32 * 1024 * 1024


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Unpack one layer.

    Attributes:
        blob: path of the compressed blob, which may still be growing.
        blob_digest: what it must hash to.
        blob_bytes: its length when it is whole.
        available_bytes: how much of it may be read now.
        target: path of the empty directory to fill.
        form: what to fill it with; see `LayerForm`.
        diff_id: what the plain tar must hash to.
        max_plain_bytes: more is a bomb.
        max_entries: more is a bomb.
    """

    blob: str
    blob_digest: str
    blob_bytes: int
    available_bytes: int
    target: str
    form: LayerForm
    diff_id: str
    max_plain_bytes: int
    max_entries: int


class More(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """So much of the blob may be read now, more than was asked about."""

    available_bytes: int


class Hungry(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`blob_bytes` were read and more are needed; nothing happens until then."""

    blob_bytes: int


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`blob_bytes` of the blob are behind us."""

    blob_bytes: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The layer is complete, the blob's digest and the diffID were right.

    Attributes:
        form: what it is; a tree also where an index was asked for and cannot say it all.
        entries, size_bytes, opaque_root: see `apply.TreeFacts`.
        implied: directories that the archive does not describe, "" for the root; decoded latin-1.
        plain_bytes: length of the plain tar.
        compression: what the blob turned out to be.
        index_digest: `sha256:...` of the index, where there is one.
    """

    form: LayerForm
    entries: int
    size_bytes: int
    opaque_root: bool
    implied: tuple[str, ...]
    plain_bytes: int
    compression: str
    index_digest: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The layer cannot be unpacked; `kind` names a class of sandbox.host.errors."""

    kind: str
    message: str
    hint: str
    fields: dict[str, str | int]


Reply = Progress | Hungry | Done | Failed

job_decoder: Final = msgspec.json.Decoder(Job)
more_decoder: Final = msgspec.json.Decoder(More)
reply_decoder: Final[msgspec.json.Decoder[Reply]] = msgspec.json.Decoder(Reply)


def encode(message: Job | More | Reply) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"
