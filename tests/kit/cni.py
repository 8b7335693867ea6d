"""A CNI configuration for test daemons: a bridge and addresses of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Debian's directory first, then the one that everyone else uses.
BIN_DIRS: Final = ("/usr/lib/cni", "/opt/cni/bin")


def bin_dir() -> str:
    """The directory that holds the plugins. Raises FileNotFoundError naming the package."""
    for directory in BIN_DIRS:
        if Path(directory, "bridge").exists():
            return directory
    raise FileNotFoundError(
        f"no bridge plugin in {BIN_DIRS}: apt-get install containernetworking-plugins"
    )


def write_conflist(directory: Path, *, bridge: str, subnet: str, data_dir: Path) -> None:
    """Write a configuration list: bridge, addresses from `subnet`, published ports.

    Leases live in `data_dir`, so that they go away with the rest of a test daemon's state. There is
    no masquerading: nothing in the tests talks to anything beyond this machine.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plugins: Sequence[object] = [
        {
            "type": "bridge",
            "bridge": bridge,
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(data_dir),
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    document = {"cniVersion": "1.0.0", "name": f"kit-{bridge}", "plugins": plugins}
    (directory / "10-kit.conflist").write_text(json.dumps(document, indent=2))


def remove_bridge(bridge: str) -> None:
    """Delete the bridge that the plugin made; it never does so itself."""
    if Path("/sys/class/net", bridge).exists():
        subprocess.run(["ip", "link", "delete", bridge], check=True)
