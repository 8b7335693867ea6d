"""A network of three plugins for tests of `PodNetwork`: the programs exist and are never run."""

from __future__ import annotations

import json
from pathlib import Path

from cni.network import Attachment, PodNetwork
from cni.settings import CniSettings
from tests.fakes.clock import FakeClock
from tests.fakes.cni_plugins import ScriptedRunner

NETNS = "/run/podwright/namespaces/a/net"
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.5/24"}]}


def pod(pod_id: str = "a" * 64, **changes) -> Attachment:
    fields = {"netns_path": NETNS, "pod_name": "p", "pod_namespace": "d", "pod_uid": "u"}
    return Attachment(pod_id=pod_id, **{**fields, **changes})


class Bench:
    """A network of three plugins whose programs exist but are never run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf_dir = root / "net.d"
        self.bin_dir = root / "bin"
        self.conf_dir.mkdir()
        self.bin_dir.mkdir()
        for name in ("one", "two", "three"):
            program = self.bin_dir / name
            program.touch()
            program.chmod(0o755)
        self.runner = ScriptedRunner()
        self.clock = FakeClock()
        self.namespaces = {NETNS}
        self.configure()
        self.network = self.fresh()

    def fresh(self, **settings) -> PodNetwork:
        """As after a restart of the daemon: what is on disk stays, memory is empty."""
        return PodNetwork(
            CniSettings(
                conf_dir=self.conf_dir,
                bin_dirs=(self.bin_dir,),
                cache_dir=self.root / "cache",
                **settings,
            ),
            self.runner,
            self.clock,
            is_namespace=lambda path: str(path) in self.namespaces,
        )

    def configure(self, *types: str, version: str = "1.1.0", **keys) -> None:
        plugins = [{"type": t} for t in types or ("one", "two", "three")]
        text = {"cniVersion": version, "name": "net", "plugins": plugins, **keys}
        (self.conf_dir / "10-net.conflist").write_text(json.dumps(text))

    def saved(self) -> list[dict]:
        paths = (self.root / "cache").glob("results/*.json")
        return [json.loads(path.read_text()) for path in paths]
