"""protobuf ↔ image values.

Every answer about an image is made from the stored value alone, never from how it was asked for:
clients compare the answers by tag, by digest and by id with each other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cri import validate
from imageservice.credentials import from_auth_config
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from imageservice.credentials import Credential
    from imageservice.service import Image
    from imageservice.usage import FsUsage

#: A numeric user of an image configuration: ASCII digits, nothing else that int() would accept
#: (CVE-2026-46680 began with numbers in other clothes).
_NUMBER: Final = re.compile(r"[0-9]+")
_DIGITS_LIMIT: Final = 10
#: Tokens of cloud registries have a few kilobytes.
_SECRET_LIMIT: Final = 64 * 1024
#: On an image that additional stores have: which, by their paths. The kubelet hands annotations of
#: images back in later requests and does nothing else with them.
STORES_ANNOTATION: Final = "podwright.io/additional-stores"


def image_reference(message: pb.ImageSpec, field: str = "image") -> str:
    """The reference or id in an ImageSpec; its grammar is the image service's business."""
    return validate.required(message.image, f"{field}.image")


def credential(message: pb.AuthConfig, field: str = "auth") -> Credential | None:
    """What to show the registry, or None when the client gave nothing.

    Raises:
        InvalidArgument: a part is too long or malformed; the text never repeats it.
    """
    for part in ("username", "password", "auth", "identity_token", "registry_token"):
        if len(getattr(message, part)) > _SECRET_LIMIT:
            validate.refuse(f"{field}.{part}", f"is longer than {_SECRET_LIMIT} characters")
    validate.text(message.server_address, f"{field}.server_address")
    return from_auth_config(
        username=message.username,
        password=message.password,
        auth=message.auth,
        server_address=message.server_address,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )


def image_message(image: Image) -> pb.Image:
    """An image as lists and statuses show it."""
    uid, username = image_user(image.user)
    spec = None
    if image.stores:
        annotations = {STORES_ANNOTATION: ", ".join(image.stores)}
        spec = pb.ImageSpec(image=image.id, annotations=annotations)
    return pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size_bytes,
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        pinned=image.pinned,
        spec=spec,
    )


def image_user(user: str) -> tuple[int | None, str]:
    """`user[:group]` of an image configuration as uid or user name; the group is not shown.

    A number out of range is neither: such an image cannot be run, and it must not look like root.
    """
    name = user.partition(":")[0]
    if _NUMBER.fullmatch(name) is None:
        return None, name
    in_range = len(name) <= _DIGITS_LIMIT and int(name) <= validate.USER_ID_LIMIT
    return (int(name), "") if in_range else (None, "")


def filesystem_usage(value: FsUsage) -> pb.FilesystemUsage:
    """Usage of one file system."""
    return pb.FilesystemUsage(
        timestamp=value.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=str(value.mountpoint)),
        used_bytes=pb.UInt64Value(value=value.used_bytes),
        inodes_used=pb.UInt64Value(value=value.inodes_used),
    )
