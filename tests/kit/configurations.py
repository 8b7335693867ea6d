"""How each runtime of the kit is told where its things are: configuration, command line, socket.

All of them: control groups by path (cgroupfs), the network that the kit has made, registries that
lead to the kit's, ports that the kernel chooses, nothing outside of the two directories where that
can be told.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.kit.cni import bin_dir
from tests.kit.registry import MIRRORED_HOSTS

#: Daemons of the kit at the same time need bridges and subnets of their own.
NETWORKS: Final = {
    "podwright": ("pwkit0", "10.201.0.0/16"),
    "containerd": ("pwkit1", "10.202.0.0/16"),
    "podwright-tree": ("pwkit2", "10.203.0.0/16"),
    "crio": ("pwkit3", "10.204.0.0/16"),
}


def _containerd(work: Path, run: Path, _: int) -> tuple[list[str], Path]:
    """Containerd 1.6 or later as a plain CRI runtime with runc and cgroupfs."""
    socket = run / "containerd.sock"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    (work / "config.toml").write_text(
        f"""
version = 2
root = "{work}/root"
state = "{run}/state"

[grpc]
address = "{socket}"

[{cri}]
sandbox_image = "registry.k8s.io/pause:3.9"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
enable_unprivileged_ports = true
enable_unprivileged_icmp = true
netns_mounts_under_state_dir = true
tolerate_missing_hugetlb_controller = true
# Where the machine does not let us lower an OOM score, every pod would fail.
restrict_oom_score_adj = true

[{cri}.cni]
bin_dir = "{bin_dir()}"
conf_dir = "{work}/cni"

[{cri}.registry]
config_path = "{work}/certs.d"

[{cri}.containerd]
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
BinaryName = "runc"
SystemdCgroup = false
"""
    )
    return ["containerd", "--config", str(work / "config.toml")], socket


def _podwright(
    work: Path, run: Path, _: int, *, layer_form: str = "auto"
) -> tuple[list[str], Path]:
    """The daemon of this tree, as `.venv/bin/podwright` starts it."""
    (work / "config.toml").write_text(
        f"""
[daemon]
run_root = "{run}/podwright"
state_root = "{work}/state"

[runtime]
cgroup_driver = "{os.environ.get("PODWRIGHT_TEST_DRIVER", "auto")}"

[cni]
conf_dir = "{work}/cni"
bin_dirs = ["{bin_dir()}"]

[image]
registry_config_dirs = ["{work}/certs.d"]
layer_form = "{layer_form}"

[metrics]
address = ""
"""
    )
    program = Path(sys.executable).with_name("podwright")
    return [str(program), "serve", "--config", str(work / "config.toml")], (
        run / "podwright" / "podwright.sock"
    )


def _crio(work: Path, run: Path, port: int) -> tuple[list[str], Path]:
    """CRI-O with crun and cgroupfs.

    `crio` must be on the PATH, which Debian does not have. `pinns` and `crun` are taken from beside
    it where they are there: crun 1.8 refuses what CRI-O 1.37 writes (OCI 1.3), crun 1.27 does not.
    """
    program = shutil.which("crio")
    if program is None:
        raise FileNotFoundError("no crio on the PATH: build it, with its pinns, and a crun beside")
    beside = Path(program).parent
    path = f"{beside}:{os.environ['PATH']}"
    socket = run / "crio.sock"
    (work / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (work / "registries.conf").write_text(
        "\n".join(
            f"""[[registry]]
prefix = "{host}"
location = "127.0.0.1:{port}"
insecure = true
"""
            for host in MIRRORED_HOSTS
        )
    )
    (work / "crio.conf").write_text(
        f"""
[crio]
root = "{work}/root"
runroot = "{run}/storage"
storage_driver = "overlay"
log_dir = "{work}/logs"
version_file = "{run}/version"
clean_shutdown_file = "{work}/clean.shutdown"

[crio.api]
listen = "{socket}"

[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
namespaces_dir = "{run}/namespaces"
container_exits_dir = "{run}/exits"
container_attach_socket_dir = "{run}/attach"
default_runtime = "crun"
apparmor_profile = "unconfined"
hooks_dir = []
enable_pod_events = true

[crio.runtime.runtimes.crun]
runtime_path = "{shutil.which("crun", path=path)}"
runtime_root = "{run}/crun"
monitor_cgroup = "pod"

[crio.image]
signature_policy = "{work}/policy.json"
signature_policy_dir = "{work}/policies"
pause_image = "registry.k8s.io/pause:3.9"

[crio.network]
network_dir = "{work}/cni"
plugin_dirs = ["{bin_dir()}"]

[crio.nri]
enable_nri = false
"""
    )
    environment = [
        f"PATH={path}",
        f"CONTAINER_REGISTRIES_CONF={work}/registries.conf",
        f"CONTAINERS_STORAGE_CONF={work}/storage.conf",
    ]
    (work / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
    command = [program, "--config", str(work / "crio.conf"), "--config-dir", ""]
    return ["env", *environment, *command], socket


#: By name of the runtime: a function of its directories on a disk and on a file system in memory,
#: and of the registry's port, which gives the command line and the socket.
CONFIGURE: Final[dict[str, Callable[[Path, Path, int], tuple[list[str], Path]]]] = {
    "podwright": _podwright,
    "podwright-tree": partial(_podwright, layer_form="tree"),
    "containerd": _containerd,
    "crio": _crio,
}
