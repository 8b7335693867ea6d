import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.convert_pod import pod_config, pod_item, pod_status
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument
from sandbox.model import (
    DnsConfig,
    IdMapping,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
    PortMapping,
    ProfileType,
    Protocol,
    SecurityProfile,
    UserNamespace,
)
from sandbox.states import PodState
from tests.unit.cri.messages import messages

ID = "a" * 64


def minimal(**fields):
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", uid="u1", namespace="default"), **fields
    )


def test_minimal_pod():
    assert pod_config(minimal()) == PodConfig(
        metadata=PodMetadata(name="web", uid="u1", namespace="default")
    )


def test_whole_pod():
    config = pod_config(
        minimal(
            hostname="web-1",
            log_directory="/var/log/pods/x",
            dns_config=pb.DNSConfig(servers=["10.0.0.1"], searches=["a.b"], options=["ndots:5"]),
            port_mappings=[
                pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="::1"),
                pb.PortMapping(container_port=80),
            ],
            labels={"app": "web"},
            annotations={"x/y": "z\n"},
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent="/kubepods/burstable",
                sysctls={"net.ipv4.ip_forward": "1"},
                overhead=pb.LinuxContainerResources(memory_limit_in_bytes=1 << 20),
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=pb.NamespaceOption(pid=pb.CONTAINER, ipc=pb.NODE),
                    run_as_user=pb.Int64Value(value=0),
                    seccomp=pb.SecurityProfile(),
                    supplemental_groups=[5],
                    privileged=True,
                ),
            ),
        )
    )
    assert config.dns == DnsConfig(servers=("10.0.0.1",), searches=("a.b",), options=("ndots:5",))
    assert config.port_mappings == (
        PortMapping(protocol=Protocol.UDP, container_port=53, host_port=5353, host_ip="::1"),
        PortMapping(container_port=80),
    )
    assert config.security == PodSecurity(
        namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER, ipc=NamespaceMode.NODE),
        run_as_user=0,
        supplemental_groups=(5,),
        privileged=True,
        seccomp=SecurityProfile(),
    )
    assert config.overhead == LinuxResources(memory_limit_bytes=1 << 20)
    assert config.resources is None
    assert config.annotations == {"x/y": "z\n"}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.PodSandboxConfig(), "config.metadata: is missing"),
        (pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a")), "config.metadata.uid"),
        (minimal(hostname="x" * 65), "config.hostname"),
        (minimal(log_directory="/a/../b"), "config.log_directory"),
        (minimal(log_directory="logs"), "config.log_directory"),
        (
            minimal(port_mappings=[pb.PortMapping(container_port=-1)]),
            r"port_mappings\[0\].container",
        ),
        (minimal(port_mappings=[pb.PortMapping(host_port=80)]), "container_port: 0"),
        (minimal(port_mappings=[pb.PortMapping(host_port=65_536)]), "host_port"),
        (minimal(port_mappings=[pb.PortMapping(host_ip="x")]), "host_ip"),
        (
            minimal(port_mappings=[pb.PortMapping(container_port=n, host_port=80) for n in (1, 2)]),
            r"port_mappings\[1\].host_port: 80 is asked for twice",
        ),
        (minimal(linux=pb.LinuxPodSandboxConfig(cgroup_parent="/a/../../b")), "cgroup_parent"),
        (minimal(linux=pb.LinuxPodSandboxConfig(cgroup_parent="a:b:c")), "cgroup_parent"),
        (minimal(linux=pb.LinuxPodSandboxConfig(sysctls={"a": "1"})), "sysctls"),
    ],
)
def test_what_is_refused(message, field):
    with pytest.raises(InvalidArgument, match=field):
        pod_config(message)


def context(**fields):
    return minimal(
        linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(**fields))
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (context(run_as_group=pb.Int64Value(value=1)), "run_as_group: needs run_as_user"),
        (context(run_as_user=pb.Int64Value(value=-1)), "run_as_user"),
        (context(run_as_user=pb.Int64Value(value=2**31)), "run_as_user"),
        (context(supplemental_groups=[2**32]), r"supplemental_groups\[0\]"),
        (
            context(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="x")),
            "pid: TARGET",
        ),
        (context(namespace_options=pb.NamespaceOption(network=pb.CONTAINER)), "network"),
        (context(namespace_options=pb.NamespaceOption(ipc=pb.TARGET)), "ipc"),
        (context(seccomp=pb.SecurityProfile(profile_type=2)), "localhost_ref: must not be empty"),
        (
            context(seccomp=pb.SecurityProfile(profile_type=2, localhost_ref="p.json")),
            "localhost_ref: must be an absolute path",
        ),
        (
            context(seccomp=pb.SecurityProfile(localhost_ref="/p.json")),
            "localhost_ref: must be empty",
        ),
        (context(seccomp_profile_path="docker"), "seccomp_profile_path"),
        (
            context(namespace_options=pb.NamespaceOption(userns_options=pb.UserNamespace())),
            "uids: needs 1",
        ),
        (
            context(
                namespace_options=pb.NamespaceOption(
                    userns_options=pb.UserNamespace(mode=pb.TARGET)
                )
            ),
            "mode: TARGET",
        ),
    ],
)
def test_security_contexts_that_are_refused(message, field):
    with pytest.raises(InvalidArgument, match=field):
        pod_config(message)


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("", None),
        ("runtime/default", SecurityProfile()),
        ("docker/default", SecurityProfile()),
        ("unconfined", SecurityProfile(profile_type=ProfileType.UNCONFINED)),
        (
            "localhost//p/q.json",
            SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="/p/q.json"),
        ),
    ],
)
def test_strings_of_older_clients(text, profile):
    assert pod_config(context(seccomp_profile_path=text)).security.seccomp == profile


def test_typed_profile_wins_over_the_string():
    message = context(seccomp_profile_path="unconfined", seccomp=pb.SecurityProfile())
    assert pod_config(message).security.seccomp == SecurityProfile()


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(messages(pb.PodSandboxConfig), st.booleans())
def test_any_message_is_a_value_or_an_invalid_argument(message, with_metadata):
    if with_metadata:
        message.MergeFrom(minimal())
    text = "config"
    try:
        pod_config(message)
    except InvalidArgument as error:
        text = str(error)
    assert text.startswith("config")


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(messages(pb.PodSandboxConfig, texts=["", "a", "/a", "net.a"]))
def test_what_was_accepted_comes_back(message):
    message.MergeFrom(minimal(log_directory="/a", hostname="a"))
    message.linux.ClearField("resources")
    message.linux.ClearField("overhead")
    del message.port_mappings[:]
    del message.dns_config.servers[:]
    try:
        config = pod_config(message)
    except InvalidArgument:
        return
    pod = PodSandbox(id=ID, config=config, state=PodState.READY, created_at_ns=1)
    for answer in (pod_item(pod), pod_status(pod)):
        assert answer.labels == message.labels
        assert answer.annotations == message.annotations
        assert answer.metadata == message.metadata
    assert (
        pod_status(pod).linux.namespaces.options == message.linux.security_context.namespace_options
    )


def test_status_of_a_ready_pod():
    pod = PodSandbox(
        id=ID,
        config=PodConfig(
            metadata=PodMetadata(name="web", uid="u", namespace="ns", attempt=2),
            labels={"a": "b"},
            security=PodSecurity(
                namespaces=NamespaceOptions(
                    user=UserNamespace(
                        mode=NamespaceMode.POD,
                        uids=(IdMapping(host_id=1, container_id=0, length=2),),
                    )
                )
            ),
        ),
        state=PodState.READY,
        created_at_ns=123,
        handler="runc",
        ips=("10.0.0.2", "fd00::2"),
    )
    status = pod_status(pod)
    assert status.state == pb.SANDBOX_READY
    assert status.created_at == 123
    assert status.network.ip == "10.0.0.2"
    assert [ip.ip for ip in status.network.additional_ips] == ["fd00::2"]
    assert status.runtime_handler == "runc"
    assert status.metadata.attempt == 2
    assert status.linux.namespaces.options.userns_options.uids[0].host_id == 1
    assert pod_item(pod).runtime_handler == "runc"


@pytest.mark.parametrize("state", [s for s in PodState if s is not PodState.READY])
def test_every_other_state_is_shown_as_not_ready(state):
    config = PodConfig(metadata=PodMetadata(name="web", uid="u", namespace="ns"))
    pod = PodSandbox(id=ID, config=config, state=state, created_at_ns=1)
    assert pod_item(pod).state == pb.SANDBOX_NOTREADY
    assert pod_status(pod).network.ip == ""
