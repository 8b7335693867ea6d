"""What is written into the files of a node of the kit: its network, its daemon's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: Subnets of a node's network; every node has a "host" of its own, so all may have the same.
SUBNETS: Final = ("10.88.78.0/24", "fd00:88:78::/64")


def network_document(leases: Path) -> dict[str, object]:
    """A bridge with addresses of both families, and host ports."""
    return {
        "cniVersion": "1.0.0",
        "name": "test-net",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pwtest-br",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(leases),
                    "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False},
        ],
    }


def config_text(values: Mapping[str, str]) -> str:
    """The configuration with these TOML values by `section.key`."""
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {value}")
    texts = (f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items())
    return "\n".join(texts) + "\n"
