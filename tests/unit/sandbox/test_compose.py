"""What the composer does with a container before its document is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from sandbox import oci
from sandbox.compose import Composer
from sandbox.host.errors import InvalidArgument
from sandbox.model import Container, CriMount, PodSandbox
from sandbox.paths import Paths
from sandbox.security.labels import SELinuxHost
from sandbox.states import ContainerState, PodState
from tests.fakes.syscalls import FakeSyscalls
from tests.kit.spec_inputs import CONTAINER, CONTAINER_ID, HOST_V1, IMAGE, POD, POD_ID

SELINUX = SELinuxHost(
    process_label="system_u:system_r:container_t:s0",
    mount_label="system_u:object_r:container_file_t:s0",
)


async def no_apparmor() -> None:
    return None


def oci_spec(document: Path) -> oci.Spec:
    return msgspec.json.decode(document.read_bytes(), type=oci.Spec)


class Composing:
    """A composer on a node with or without SELinux, and what it did to the machine."""

    def __init__(self, root: Path, selinux: SELinuxHost | None) -> None:
        self.syscalls = FakeSyscalls()
        self.rootfs = root / "rootfs"
        self.rootfs.mkdir()
        paths = Paths(run_root=root / "run", state_root=root / "state")
        for directory in (paths.pod(POD_ID), paths.container(CONTAINER_ID)):
            directory.mkdir(parents=True)
        self.document = paths.container(CONTAINER_ID) / "config.json"
        self.composer = Composer(
            paths=paths,
            store=None,  # type: ignore[arg-type]
            namespaces=None,  # type: ignore[arg-type]
            syscalls=self.syscalls,
            facts={"crun": HOST_V1},
            lsm=SimpleNamespace(selinux=selinux, apparmor=no_apparmor),  # type: ignore[arg-type]
        )

    async def compose(self, mount: CriMount, **changes: object) -> None:
        pod_security = msgspec.structs.replace(POD.security, privileged=True)
        pod_config = msgspec.structs.replace(POD, security=pod_security)
        pod = PodSandbox(
            id=POD_ID, config=pod_config, state=PodState.READY, created_at_ns=0, runtime="crun",
            cgroup_path="/pod", selinux_level="s0:c1,c2",
        )  # fmt: skip
        security = msgspec.structs.replace(CONTAINER.security, **changes)
        config = msgspec.structs.replace(CONTAINER, mounts=(mount,), security=security)
        container = Container(
            id=CONTAINER_ID, pod_id=POD_ID, config=config, state=ContainerState.CREATING,
            created_at_ns=0, runtime="crun", cgroup_path="/pod/container",
            image_id="x", image_ref="x", image_name="x",
        )  # fmt: skip
        await self.composer.container(pod, container, IMAGE, self.rootfs, volumes={})


@pytest.mark.parametrize(
    ("selinux", "asked", "privileged", "labelled"),
    [
        (SELINUX, True, False, True),
        (SELINUX, False, False, False),
        (SELINUX, True, True, True),
        (None, True, False, False),
    ],
    ids=["asked", "not asked", "privileged", "no selinux"],
)
async def test_sources_get_the_containers_label_where_asked(
    tmp_path: Path, selinux: SELinuxHost | None, asked: bool, privileged: bool, labelled: bool
):
    (tmp_path / "volume").mkdir()
    mount = CriMount(container_path="/v", host_path=str(tmp_path / "volume"), selinux_relabel=asked)
    composing = Composing(tmp_path, selinux)
    await composing.compose(mount, privileged=privileged)
    values = [call.value for call in composing.syscalls.named("lsetxattr")]
    assert values == ([b"system_u:object_r:container_file_t:s0:c1,c2\0"] if labelled else [])
    assert "/v" in [mount.destination for mount in oci_spec(composing.document).mounts]


@pytest.mark.parametrize("selinux", [SELINUX, None], ids=["selinux", "no selinux"])
async def test_a_directory_of_the_node_with_the_flag(tmp_path: Path, selinux: SELinuxHost | None):
    composing = Composing(tmp_path, selinux)
    mount = CriMount(container_path="/v", host_path="/etc", selinux_relabel=True)
    if selinux is None:
        await composing.compose(mount)  # the flag has no effect there
    else:
        with pytest.raises(InvalidArgument, match="/etc belongs to the node"):
            await composing.compose(mount)
    assert composing.syscalls.named("lsetxattr") == []


async def test_nothing_is_labelled_for_a_container_that_is_refused(tmp_path: Path):
    (tmp_path / "volume").mkdir()
    composing = Composing(tmp_path, SELINUX)
    mount = CriMount(container_path="/v", host_path=str(tmp_path / "volume"), selinux_relabel=True)
    with pytest.raises(InvalidArgument, match="masked"):
        await composing.compose(mount, masked_paths=("relative",))
    assert composing.syscalls.named("lsetxattr") == []
    assert not composing.document.exists()
