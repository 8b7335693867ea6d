"""Names of CDI devices, and which a container asks for; SPEC.md of CDI, "Kind" and "Device"."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from sandbox.model import ContainerConfig

#: Annotations that carry names; the value is a list with commas.
ANNOTATION_PREFIX: Final = "cdi.k8s.io/"
#: Devices of one container; device plugins give a handful.
DEVICES_LIMIT: Final = 512
#: Of a whole name (bytes); three parts of at most 63 are usual.
NAME_LIMIT: Final = 512

#: Vendor and class: a letter, then letters, digits, `_`, `-`, `.`, ending in a letter or digit.
_PART: Final = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_KIND: Final = re.compile(rf"{_PART}/{_PART}")
#: A device may begin with a digit, and have colons, as PCI addresses do.
_DEVICE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")


class DeviceName(NamedTuple):
    """`kind=device`, where kind is `vendor/class`."""

    kind: str
    device: str

    def __str__(self) -> str:
        """As it is written in requests."""
        return f"{self.kind}={self.device}"


def is_kind(text: str) -> bool:
    """Whether `text` is a vendor and a class."""
    return len(text) <= NAME_LIMIT and _KIND.fullmatch(text) is not None


def is_device(text: str) -> bool:
    """Whether `text` can name a device within its kind."""
    return len(text) <= NAME_LIMIT and _DEVICE.fullmatch(text) is not None


def parse_name(text: str, where: str) -> DeviceName:
    """The parts of a qualified name.

    Raises:
        InvalidArgument: it is not one; `where` says where it stood.
    """
    kind, equals, device = text.partition("=")
    if not equals or not is_kind(kind) or not is_device(device):
        raise InvalidArgument(
            f"not the name of a CDI device: {text[:128]!a}",
            hint="such a name is VENDOR/CLASS=DEVICE, for example vendor.com/gpu=0",
            where=where,
        )
    return DeviceName(kind, device)


def wanted_devices(config: ContainerConfig) -> tuple[DeviceName, ...]:
    """What the container asks for, each name once: the field in its order, then the annotations.

    Raises:
        InvalidArgument: a name that is not one, or too many.
    """
    names = [parse_name(text, "CDI_devices") for text in config.cdi_devices]
    for key, value in sorted(config.annotations.items()):
        if key.startswith(ANNOTATION_PREFIX):
            names += [parse_name(text.strip(), f"annotation {key}") for text in value.split(",")]
    wanted = tuple(dict.fromkeys(names))
    if len(wanted) > DEVICES_LIMIT:
        raise InvalidArgument(f"a container asks for more than {DEVICES_LIMIT} CDI devices")
    return wanted
