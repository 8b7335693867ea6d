"""A network configuration made from a template when the kubelet tells the node's pod addresses.

Clusters whose controller gives each node a range (`podCIDR`) and that have no network add-on of
their own need no more than this. The words are those that containerd's templates use:

    {{.PodCIDR}}         the first range, such as 10.1.2.0/24
    {{.PodCIDRRanges}}   for host-local's `ranges`: [[{"subnet": "10.1.2.0/24"}], ...]
    {{.Routes}}          for its `routes`: a default route for each family there is a range of

There are no loops: what they are written for is in the last two words. The result is checked to be
a network configuration before it is written, so that a bad template never takes a node's network
away.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING, Final

from cni.config import parse_network
from cni.errors import ConfigInvalid
from sandbox.host.errors import InvalidArgument, PodwrightError, map_os_errors
from sandbox.host.files import read_limited, write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Sorts after nothing that an add-on would write on purpose, before what distributions leave.
FILE_NAME: Final = "10-podwright-net.conflist"
#: One range of each family is what kubelets send.
_RANGES_LIMIT: Final = 16
_TEMPLATE_LIMIT_BYTES: Final = 256 * 1024

_WORD: Final = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_DEFAULT_ROUTES: Final = {4: "0.0.0.0/0", 6: "::/0"}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_ranges(text: str) -> tuple[Network, ...]:
    """The ranges of `podCIDR`, which has one, or one of each family with a comma between.

    Raises:
        InvalidArgument: not that, or none at all.
    """
    words = [word.strip() for word in text.split(",")]
    if not 0 < len(words) <= _RANGES_LIMIT:
        raise InvalidArgument("pod_cidr names too many ranges")
    try:
        return tuple(ipaddress.ip_network(word) for word in words)
    except ValueError:
        raise InvalidArgument(
            f"pod_cidr is not a range such as 10.1.2.0/24: {text[:128]!a}"
        ) from None


def render(template: str, ranges: Sequence[Network], *, source: str = "") -> str:
    """The configuration for these ranges.

    Raises:
        ConfigInvalid: the template has words that are not in the module text, or its result is no
            network configuration.
    """
    values = {
        ".PodCIDR": str(ranges[0]),
        ".PodCIDRRanges": json.dumps([[{"subnet": str(one)}] for one in ranges]),
        ".Routes": json.dumps(
            [{"dst": _DEFAULT_ROUTES[v]} for v in dict.fromkeys(one.version for one in ranges)]
        ),
    }

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1])
        if found is None:
            raise ConfigInvalid(
                f"network template has an unknown word {match[0][:64]!a}",
                path=source or None,
                hint=f"known are {', '.join(values)}",
            )
        return found

    text = _WORD.sub(value, template)
    parse_network(text, source=source)
    return text


def write_rendered(template: Path, ranges: Sequence[Network], target: Path) -> None:
    """Render the file `template` to the file `target`. Blocking.

    Raises:
        ConfigInvalid: the template cannot be read, or gives no configuration; nothing was written.
        PodwrightError: the target cannot be written.
    """
    try:
        text = read_limited(template, _TEMPLATE_LIMIT_BYTES).decode()
    except (PodwrightError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            "network template cannot be read", path=str(template), hint="correct cni.conf_template"
        ) from error
    made = render(text, ranges, source=str(template)).encode()
    with map_os_errors("cannot make directory", path=str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, made, mode=0o644)
