"""Requests of every size, and faults inside of handlers: what the client reads of them."""

from __future__ import annotations

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
FAILPOINTS = True


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


@pytest.mark.cell("MF2")
def test_a_message_that_is_too_large(node: Node) -> None:
    config = node.pod_config("pod", annotations={"large": "x" * (17 << 20)})
    request = api.RunPodSandboxRequest(config=config)
    channel = grpc.insecure_channel(
        f"unix://{node.socket}",
        options=[("grpc.max_send_message_length", -1), ("grpc.default_authority", "localhost")],
    )
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")(
            request.SerializeToString(), timeout=PATIENCE_S
        )
    assert code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not node.pods()
    node.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)


@pytest.mark.cell("MF2")
def test_a_message_that_is_just_not_too_large(node: Node) -> None:
    """More than gRPC takes when nobody asks it to; it is read, and judged by its parts."""
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", annotations={"large": "x" * (6 << 20)})
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert "annotations" in refused.value.details()  # type: ignore[attr-defined]


MANY = 100_000
REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@pytest.mark.cell("MF7")
@pytest.mark.parametrize("what", ["args", "one long arg", "envs", "mounts", "labels", "devices"])
def test_a_hundred_thousand_of_one_thing(node: Node, what: str) -> None:
    """Made, or refused in words of which thing there is too much; and nothing of it stays."""
    pod = node.run_pod("pod")
    request = node.create_request(pod, "many", SLEEP)
    config = request.config
    if what == "args":
        config.args.extend(["word"] * MANY)
    elif what == "one long arg":
        config.args.append("x" * (4 << 20))
    elif what == "envs":
        config.envs.extend(api.KeyValue(key=f"NAME_{n}", value=b"value") for n in range(MANY))
    elif what == "mounts":
        config.mounts.extend(
            api.Mount(container_path=f"/mounts/{n}", host_path="/etc/hostname") for n in range(MANY)
        )
    elif what == "labels":
        config.labels.update({f"label-{n}": "value" for n in range(MANY)})
    else:
        config.devices.extend(
            api.Device(container_path=f"/dev/d{n}", host_path="/dev/null", permissions="r")
            for n in range(MANY)
        )
    try:
        container = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
        node.ids.add(container)
        node.start(container)
    except grpc.RpcError as error:
        words = error.details() or ""  # type: ignore[attr-defined]
        if error.code() not in REFUSALS or len(words) > 10_000:  # type: ignore[attr-defined]
            raise
    node.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)
    assert node.exec(node.run(pod, "other", SLEEP), "true")[0] == 0
    node.assert_true()


#: A step of each call, at which the machine says something that nobody has thought of.
FAULTS = [
    ("RunPodSandbox", "^commit state.db inserting"),
    ("RunPodSandbox", "^mkdir RUN/pods/ID$"),
    ("RunPodSandbox", "^mount RUN/pods/ID/shm"),
    ("RunPodSandbox", "^unshare"),
    ("RunPodSandbox", "^run crun create"),
    ("RunPodSandbox", "^commit state.db updating"),
]


@pytest.mark.cell("MF12", "DK7", "DK8")
@pytest.mark.parametrize("errno", ["EIO", "ENOSPC", "EMFILE", "EROFS"])
@pytest.mark.parametrize(("_call", "match"), FAULTS)
def test_a_fault_inside_of_a_handler(node: Node, _call: str, match: str, errno: str) -> None:
    """The client reads no word of the interpreter (judged of every refusal), and asks again."""
    assert node.failpoints is not None
    with (
        node.failpoints.ordered(f"fail:{errno}", match=match),
        pytest.raises(grpc.RpcError) as refused,
    ):
        node.run_pod("pod")
    assert code_of(refused) is not grpc.StatusCode.UNKNOWN
    assert str(node.work) not in refused.value.details() or "path" in refused.value.details()  # type: ignore[attr-defined]
    for pod in node.pods():
        assert pod.state == api.SANDBOX_NOTREADY
    pod = node.run_pod("pod")
    assert node.pod_status(pod).state == api.SANDBOX_READY
    node.assert_true()
