"""What an operator may set about metrics, as one frozen value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sandbox.host.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where metrics are served.

    Attributes:
        address: `IP:PORT` or `[IP]:PORT` of the listener, empty for none. Loopback by default: the
            numbers tell nobody a secret, but names and amounts of what a node runs are not for the
            network either. Port 0 takes any free one.
        request_timeout_s: how long a scraper may take to send its request and to take the answer.
    """

    address: str = "127.0.0.1:9190"
    request_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse an address that cannot be listened on. Raises InvalidArgument."""
        if self.address:
            self.listen()

    def listen(self) -> tuple[str, int]:
        """Host and port. Raises InvalidArgument when `address` is not of the form above."""
        host, colon, port = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(host)
            number = int(port)
        except ValueError:
            colon = ""
            number = -1
        if not colon or not port.isascii() or not 0 <= number <= 65_535:
            raise InvalidArgument(
                "metrics address is not IP:PORT",
                address=self.address,
                hint="write it like 127.0.0.1:9190, or leave it empty to serve no metrics",
            )
        return host, number


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How often pods and containers are looked at.

    Attributes:
        interval_s: in the background, so that rates exist when somebody asks; 0 only when asked.
        min_age_s: an answer may be as old as this; clients that ask more often get the same one.
        layer_age_s: how old the size of a writable layer may be before it is walked again.
    """

    interval_s: float = 10.0
    min_age_s: float = 0.5
    layer_age_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRateSettings:
    """What is made of how fast containers log.

    Attributes:
        interval_s: between two looks at the logs' sizes; 0: they are not looked at.
        warning_bytes: a container above this in a second is named in the daemon's log; 0: none.
            A kubelet keeps 10 MiB of a container's log and looks every 10 s by default: what is
            faster than the default here has written more than it keeps before it is rotated.
        pods: how many of the fastest pods get a metric of their own; each is one series.
    """

    interval_s: float = 10.0
    warning_bytes: int = 1 << 20
    pods: int = 0
