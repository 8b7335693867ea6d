import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.convert_container import container_config, container_item, container_status
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument
from sandbox.model import (
    Capabilities,
    Container,
    ContainerConfig,
    ContainerSecurity,
    ContainerUser,
    CriDevice,
    CriMount,
    HugepageLimit,
    ImageSpec,
    ImageVolume,
    LinuxResources,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SecurityProfile,
    SupplementalGroupsPolicy,
)
from sandbox.states import ContainerState
from tests.unit.cri.messages import messages

ID = "a" * 64


def minimal(**fields):
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app"), image=pb.ImageSpec(image="busybox"), **fields
    )


def context(**fields):
    return minimal(
        linux=pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))
    )


def limits(**fields):
    return minimal(linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields)))


def mount(**fields):
    return minimal(mounts=[pb.Mount(**{"container_path": "/c", "host_path": "/h", **fields})])


def test_minimal_container():
    assert container_config(minimal()) == ContainerConfig(
        name="app", image=ImageSpec(image="busybox")
    )


def test_whole_container():
    config = container_config(
        pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="app", attempt=3),
            image=pb.ImageSpec(image="sha256:1", user_specified_image="busybox"),
            command=["sh", "-c"],
            args=["echo $(x); %s"],
            working_dir="/srv",
            envs=[pb.KeyValue(key="A", value=b"b=c\n")],
            mounts=[
                pb.Mount(
                    container_path="/c",
                    host_path="/h",
                    readonly=True,
                    recursive_read_only=True,
                    mount_options=["noexec"],
                ),
                pb.Mount(
                    container_path="/d", host_path="/h", propagation=pb.PROPAGATION_BIDIRECTIONAL
                ),
            ],
            devices=[pb.Device(container_path="/dev/x", host_path="/dev/y", permissions="rw")],
            labels={"a": "b"},
            annotations={"c": "d"},
            log_path="app/0.log",
            stdin=True,
            tty=True,
            stop_signal=pb.SIGNAL_SIGRTMINPLUS3,
            CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=0")],
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(
                    cpu_period=100_000,
                    cpu_quota=-1,
                    cpu_shares=2,
                    memory_limit_in_bytes=1 << 30,
                    oom_score_adj=-998,
                    cpuset_cpus="0-1",
                    hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4096)],
                    unified={"memory.high": "1"},
                ),
                security_context=pb.LinuxContainerSecurityContext(
                    capabilities=pb.Capability(
                        add_capabilities=["ALL"], drop_capabilities=["net_raw"]
                    ),
                    namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="abc"),
                    run_as_username="www",
                    run_as_group=pb.Int64Value(value=7),
                    supplemental_groups_policy=pb.Strict,
                    masked_paths=["/proc/kcore"],
                    apparmor_profile="localhost/mine",
                    seccomp_profile_path="unconfined",
                    no_new_privs=True,
                ),
            ),
        )
    )
    assert config == ContainerConfig(
        name="app",
        attempt=3,
        image=ImageSpec(image="sha256:1", user_specified_image="busybox"),
        command=("sh", "-c"),
        args=("echo $(x); %s",),
        working_dir="/srv",
        envs=(("A", "b=c\n"),),
        mounts=(
            CriMount(
                container_path="/c",
                host_path="/h",
                readonly=True,
                recursive_read_only=True,
                mount_options=("noexec",),
            ),
            CriMount(
                container_path="/d", host_path="/h", propagation=MountPropagation.BIDIRECTIONAL
            ),
        ),
        devices=(CriDevice(container_path="/dev/x", host_path="/dev/y", permissions="rw"),),
        labels={"a": "b"},
        annotations={"c": "d"},
        log_path="app/0.log",
        stdin=True,
        tty=True,
        stop_signal="SIGRTMIN+3",
        cdi_devices=("vendor.com/gpu=0",),
        resources=LinuxResources(
            cpu_period_usec=100_000,
            cpu_quota_usec=-1,
            cpu_shares=2,
            memory_limit_bytes=1 << 30,
            oom_score_adj=-998,
            cpuset_cpus="0-1",
            hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=4096),),
            unified={"memory.high": "1"},
        ),
        security=ContainerSecurity(
            capabilities=Capabilities(add=("ALL",), drop=("net_raw",)),
            namespaces=NamespaceOptions(pid=NamespaceMode.TARGET, target_id="abc"),
            run_as_username="www",
            run_as_group=7,
            supplemental_groups_policy=SupplementalGroupsPolicy.STRICT,
            masked_paths=("/proc/kcore",),
            apparmor=SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="mine"),
            seccomp=SecurityProfile(profile_type=ProfileType.UNCONFINED),
            no_new_privs=True,
        ),
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ContainerConfig(), "config.metadata: is missing"),
        (pb.ContainerConfig(metadata=pb.ContainerMetadata(name="a")), "config.image: is missing"),
        (
            pb.ContainerConfig(metadata=pb.ContainerMetadata(), image=pb.ImageSpec(image="x")),
            "config.metadata.name: must not be empty",
        ),
        (
            pb.ContainerConfig(metadata=pb.ContainerMetadata(name="a"), image=pb.ImageSpec()),
            "config.image.image: must not be empty",
        ),
        (minimal(log_path="../x"), "log_path"),
        (minimal(log_path="/x"), "log_path"),
        (minimal(log_path="a/../../x"), "log_path"),
        (minimal(working_dir="srv"), "working_dir"),
        (minimal(working_dir="/proc/self/fd/7"), "working_dir"),
        (minimal(envs=[pb.KeyValue(key="")]), r"envs\[0\]"),
        (minimal(envs=[pb.KeyValue(key="A\nB")]), r"envs\[0\]"),
        (minimal(envs=[pb.KeyValue(key="A", value=b"\xff")]), "not UTF-8"),
        (minimal(args=["x" * 131_072]), r"args\[0\]"),
        (minimal(args=["x" * 131_000] * 50), "bytes in all"),
        (minimal(args=[""] * 10_001), "args: has 10001 entries"),
        (minimal(stop_signal=9999), "stop_signal"),
        (minimal(stop_signal=-1), "stop_signal"),
        (mount(container_path=""), "container_path"),
        (mount(container_path="c"), "container_path"),
        (mount(container_path="/a/../../b"), "container_path"),
        (mount(container_path="/."), "root directory"),
        (mount(container_path="/" + "x" * 70_000), "container_path"),
        (mount(host_path="x" * 70_000), "host_path"),
        (mount(host_path=""), "host_path or image"),
        (mount(image=pb.ImageSpec(image="x")), "host_path or image"),
        (mount(image_sub_path="a"), "image_sub_path"),
        (mount(propagation=7), "propagation"),
        (mount(recursive_read_only=True), "needs readonly"),
        (mount(recursive_read_only=True, readonly=True, propagation=1), "PROPAGATION_PRIVATE"),
        (mount(recursive_read_only=True, readonly=True, propagation=2), "PROPAGATION_PRIVATE"),
        (mount(mount_options=["rw"]), "mount_options"),
        (mount(mount_options=["noexec,suid"]), "mount_options"),
        (mount(uidMappings=[pb.IDMapping()]), "length"),
        (mount(uidMappings=[pb.IDMapping(host_id=2**32 - 1, length=2)]), "beyond the last id"),
        (minimal(devices=[pb.Device(container_path="/a", host_path="b")]), "host_path"),
        (
            minimal(devices=[pb.Device(container_path="/a", host_path="/b", permissions="rwx")]),
            "permissions",
        ),
        (context(run_as_group=pb.Int64Value(value=1)), "run_as_group"),
        (context(run_as_user=pb.Int64Value(value=1), run_as_username="a"), "exclude each other"),
        (context(run_as_username="a\nb"), "run_as_username"),
        (context(namespace_options=pb.NamespaceOption(pid=pb.TARGET)), "target_id"),
        (context(namespace_options=pb.NamespaceOption(pid=99)), "namespace_options.pid: 99"),
        (context(apparmor_profile="docker/default"), "apparmor_profile"),
        (context(apparmor=pb.SecurityProfile(profile_type=2)), "localhost_ref"),
        (context(masked_paths=["proc"]), r"masked_paths\[0\]"),
        (context(capabilities=pb.Capability(add_capabilities=[""])), "add_capabilities"),
        (limits(cpu_period=999), "cpu_period"),
        (limits(cpu_period=-1), "cpu_period"),
        (limits(cpu_quota=-2), "cpu_quota"),
        (limits(cpu_shares=-1), "cpu_shares"),
        (limits(memory_limit_in_bytes=-2), "memory_limit_in_bytes"),
        (limits(memory_swap_limit_in_bytes=-(2**63)), "memory_swap_limit_in_bytes"),
        (limits(oom_score_adj=1001), "oom_score_adj"),
        (limits(cpuset_cpus="x"), "cpuset_cpus"),
        (limits(hugepage_limits=[pb.HugepageLimit(page_size="../x")]), "page_size"),
        (limits(unified={"../x": "1"}), "unified"),
    ],
)
def test_what_is_refused(message, field):
    with pytest.raises(InvalidArgument, match=field):
        container_config(message)


def test_every_signal_of_the_enum_is_understood_and_comes_back():
    from cri.signals import parse_signal

    for name, number in pb.Signal.items():
        config = container_config(minimal(stop_signal=number))
        sent = parse_signal(config.stop_signal) if config.stop_signal else 15
        container = Container(
            id=ID,
            pod_id=ID,
            config=config,
            state=ContainerState.CREATED,
            created_at_ns=1,
            stop_signal=sent,
        )
        expected = name if number else "SIGNAL_SIGTERM"
        assert pb.Signal.Name(container_status(container).stop_signal) == expected


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(messages(pb.ContainerConfig), st.booleans())
def test_any_message_is_a_value_or_an_invalid_argument(message, with_metadata):
    if with_metadata:
        message.MergeFrom(minimal(working_dir="/a", log_path="a"))
    text = "config"
    try:
        container_config(message)
    except InvalidArgument as error:
        text = str(error)
    assert text.startswith("config")


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(messages(pb.ContainerConfig, texts=["", "a", "/a", "rw", "0-1"]))
def test_what_was_accepted_comes_back(message):
    message.MergeFrom(minimal(working_dir="/a", log_path="a"))
    try:
        config = container_config(message)
    except InvalidArgument:
        return
    container = Container(
        id=ID, pod_id=ID, config=config, state=ContainerState.RUNNING, created_at_ns=1
    )
    status = container_status(container)
    for answer in (container_item(container), status):
        assert answer.labels == message.labels
        assert answer.annotations == message.annotations
        assert answer.metadata == message.metadata
        assert answer.image == message.image
    assert len(status.mounts) == len(message.mounts)
    for got, sent in zip(status.mounts, message.mounts, strict=True):
        if not sent.image.image:
            sent.ClearField("image")
        assert got == sent
    if message.linux.HasField("resources"):
        assert status.resources.linux == message.linux.resources


def container(state=ContainerState.EXITED, **fields):
    values = {
        "config": ContainerConfig(name="app", image=ImageSpec(image="sha256:1")),
        "started_at_ns": 5,
        "finished_at_ns": 9,
        "exit_code": 137,
        "reason": "OOMKilled",
        "image_id": "sha256:1",
        "image_ref": "docker.io/library/busybox@sha256:2",
        "image_name": "docker.io/library/busybox:1",
        "log_path": "/var/log/pods/x/app/0.log",
        "user": ContainerUser(uid=1, gid=2, supplemental_groups=(2, 3)),
        **fields,
    }
    return Container(id=ID, pod_id="b" * 64, state=state, created_at_ns=1, **values)


def test_status_of_an_exited_container():
    status = container_status(container())
    assert (status.id, status.state) == (ID, pb.CONTAINER_EXITED)
    assert (status.created_at, status.started_at, status.finished_at) == (1, 5, 9)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert status.image.image == "docker.io/library/busybox:1"
    assert status.image_ref == "docker.io/library/busybox@sha256:2"
    assert status.image_id == "sha256:1"
    assert status.user.linux.uid == 1
    assert list(status.user.linux.supplemental_groups) == [2, 3]
    assert status.stop_signal == pb.SIGNAL_SIGTERM
    assert status.log_path == "/var/log/pods/x/app/0.log"
    assert not status.HasField("resources")


def test_status_tells_what_image_volumes_came_to():
    """Image.id, which the kubelet's collector compares, and the digest for the pod's status."""
    asked = (
        CriMount(container_path="/a", host_path="/b"),
        CriMount(container_path="/c", image=ImageSpec(image="busybox"), image_sub_path="bin"),
        CriMount(
            container_path="/d", image=ImageSpec(image="sha256:1", user_specified_image="app:1")
        ),
    )
    volumes = tuple(
        ImageVolume(mount=place, image_id="sha256:1", image_ref="docker.io/library/b@sha256:2")
        for place in (1, 2)
    )
    config = ContainerConfig(name="app", image=ImageSpec(image="sha256:9"), mounts=asked)
    plain, by_name, by_id = container_status(container(config=config, image_volumes=volumes)).mounts
    assert not plain.HasField("image")
    assert not plain.readonly
    for mount, named in ((by_name, "busybox"), (by_id, "app:1")):
        assert mount.readonly
        assert mount.image == pb.ImageSpec(
            image="sha256:1",
            image_ref="docker.io/library/b@sha256:2",
            user_specified_image=named,
        )
    assert by_name.image_sub_path == "bin"


@pytest.mark.parametrize(
    ("state", "shown", "times"),
    [
        (ContainerState.CREATED, pb.CONTAINER_CREATED, (0, 0, 0)),
        (ContainerState.RUNNING, pb.CONTAINER_RUNNING, (5, 0, 0)),
        (ContainerState.EXITED, pb.CONTAINER_EXITED, (5, 9, 137)),
        (ContainerState.REMOVING, pb.CONTAINER_EXITED, (5, 9, 137)),
        (ContainerState.UNKNOWN, pb.CONTAINER_UNKNOWN, (0, 0, 0)),
    ],
)
def test_times_and_exit_code_belong_to_states(state, shown, times):
    status = container_status(container(state))
    assert status.state == shown
    assert (status.started_at, status.finished_at, status.exit_code) == times


def test_list_entry_has_the_image_id_as_reference():
    item = container_item(container())
    assert item.image_ref == item.image_id == "sha256:1"
    assert item.image.image == "sha256:1"
    assert item.pod_sandbox_id == "b" * 64


def test_current_resources_win_over_those_asked_for_at_first():
    config = ContainerConfig(name="app", resources=LinuxResources(cpu_shares=2))
    status = container_status(container(config=config, resources=LinuxResources(cpu_shares=4)))
    assert status.resources.linux.cpu_shares == 4
