"""A real kubelet, standalone with a static pod, finds everything it asks of a runtime."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from protos import api_pb2 as api
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount_tree
from tests.kit.calls import until
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node
from tests.kit.registry import bound_to_parent, free_port, stop

#: A kubelet looks at its manifests, its containers and its cgroups every few seconds.
PATIENCE_S: Final = 180.0
NODE_NAME: Final = "standalone"


def kubelet_program() -> str:
    """The kubelet to test with; skips where there is none."""
    named = os.environ.get("PODWRIGHT_KUBELET", "")
    if named:
        assert os.access(named, os.X_OK), f"PODWRIGHT_KUBELET={named} cannot be run"
        return named
    found = shutil.which("kubelet")
    if found is None:
        pytest.skip(
            "no kubelet: put one of Kubernetes 1.34 or later on PATH, or its path into"
            " PODWRIGHT_KUBELET (any release's kubelet binary will do; it needs no cluster)"
        )
    return found


class Kubelet:
    """One that runs; it talks to nobody but the runtime."""

    def __init__(self, node: Node, work: Path) -> None:
        """Write the configuration.

        Args:
            node: whose daemon it uses, and below whose control group its own begin.
            work: for everything it keeps.
        """
        self.manifests = work / "manifests"
        self.manifests.mkdir()
        self.log = work / "kubelet.log"
        self._port = free_port()
        self._work = work
        self._config = work / "kubelet.json"
        document = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": "127.0.0.1",
            "port": self._port,
            "healthzPort": 0,
            "staticPodPath": str(self.manifests),
            "podLogsDir": str(work / "pod-logs"),
            "volumePluginDir": str(work / "plugins"),
            "containerRuntimeEndpoint": f"unix://{node.socket}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupRoot": f"/{node.tag}",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "failSwapOn": False,
            "failCgroupV1": False,
            "makeIPTablesUtilChains": False,
            "fileCheckFrequency": "1s",
            "syncFrequency": "2s",
        }
        self._config.write_text(json.dumps(document))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It runs within the block."""
        argv = [
            kubelet_program(),
            *("--config", str(self._config)),
            *("--root-dir", str(self._work / "root")),
            *("--cert-dir", str(self._work / "certificates")),
            *("--hostname-override", NODE_NAME),
        ]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                bound_to_parent(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield
            assert process.poll() is None, "the kubelet has ended"
        except BaseException:
            print(self.log.read_text(errors="replace")[-8000:])
            raise
        finally:
            stop(process)
            # It makes its directory a mount point, so that what it mounts below can be shared.
            unmount_tree(self._work / "root", syscalls=LibcSyscalls())

    def ask(self, path: str) -> str:
        """What it answers to GET; empty while it does not."""
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE  # it has signed its certificate itself
        link = http.client.HTTPSConnection("127.0.0.1", self._port, context=trusting, timeout=10)
        with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
            link.request("GET", path)
            response = link.getresponse()
            body = response.read().decode()
            return body if response.status == http.client.OK else ""
        return ""

    def pods(self) -> dict[str, Mapping[str, str]]:
        """Phase and address of every pod it knows, by name."""
        answer = self.ask("/pods")
        items = json.loads(answer)["items"] or [] if answer else []
        return {item["metadata"]["name"]: item["status"] for item in items}


@pytest.fixture
def kubelet_node(certs_d: Path) -> Iterator[Node]:
    """A node of its own: a kubelet keeps control groups for as long as it likes."""
    with Node.running("kubelet", certs_d) as node:
        yield node


def make_cgroup_root(node: Node) -> None:
    """The kubelet wants its root to be in every hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2") and "name=" not in options:
            group = Path(mount, node.tag)
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists() and kind == "cgroup":
                    (group / name).write_text(Path(mount, name).read_text())


def test_static_pod_runs_is_watched_restarted_and_removed(
    kubelet_node: Node, tmp_path: Path
) -> None:
    kubelet_program()
    node = kubelet_node
    make_cgroup_root(node)
    kubelet = Kubelet(node, tmp_path)
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": BUSYBOX,
                    "imagePullPolicy": "IfNotPresent",
                    "command": [
                        "sh",
                        "-c",
                        "echo here I am; while [ ! -e /end ]; do sleep 1; done",
                    ],
                    "resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                    "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
                }
            ],
        },
    }
    new = tmp_path / "static.json"
    new.write_text(json.dumps(manifest))
    new.rename(kubelet.manifests / "static.json")
    name = f"static-{NODE_NAME}"
    with kubelet.running():
        until(
            lambda: kubelet.pods().get(name, {}).get("phase") == "Running",
            "the static pod runs",
            patience_s=PATIENCE_S,
        )
        [pod] = node.pods()
        [container] = node.containers()
        assert container.state == api.CONTAINER_RUNNING
        assert pod.metadata.name == name
        until(
            lambda: kubelet.pods()[name].get("podIP") == node.pod_status(pod.id).network.ip,
            "the kubelet knows its address",
            patience_s=PATIENCE_S,
        )
        until(
            lambda: kubelet.ask(f"/containerLogs/default/{name}/main") == "here I am\n",
            "the kubelet reads its log",
            patience_s=PATIENCE_S,
        )

        def summary_has_it() -> bool:
            answer = kubelet.ask("/stats/summary")
            pods = json.loads(answer)["pods"] or [] if answer else []
            return any(
                each["podRef"]["name"] == name and each.get("containers", [{}])[0].get("memory")
                for each in pods
            )

        until(summary_has_it, "its memory is in the summary", patience_s=PATIENCE_S)
        assert node.exec(container.id, "touch", "/end")[0] == 0
        until(
            lambda: any(
                each.id != container.id and each.state == api.CONTAINER_RUNNING
                for each in node.containers()
            ),
            "a container that ended is started again",
            patience_s=PATIENCE_S,
        )
        (kubelet.manifests / "static.json").unlink()
        until(
            lambda: not [each for each in node.pods() if each.state == api.SANDBOX_READY],
            "the pod goes with its manifest",
            patience_s=PATIENCE_S,
        )
    for kept in node.pods():
        node.ids.add(kept.id)
    node.remove_everything()
