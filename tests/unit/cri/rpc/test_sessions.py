import json

import pytest

from cri.node_sessions import on_terminal
from cri.rpc.sessions import SessionCalls
from cri.streaming.targets import AttachTarget, ExecTarget, PortForwardTarget
from protos import api_pb2 as pb
from sandbox import oci
from sandbox.host.errors import InvalidArgument, NotFound, ResourceExhausted
from tests.fakes.daemon import FakeContainers
from tests.fakes.streaming import FakeStreaming


@pytest.fixture
def streaming():
    return FakeStreaming()


@pytest.fixture
def calls(streaming):
    return SessionCalls(FakeContainers(), streaming)


async def test_exec(calls, streaming):
    request = pb.ExecRequest(container_id="c", cmd=["sh", "-c", "x"], tty=True, stdin=True)
    assert (await calls.exec(request)).url == "http://127.0.0.1:1/exec/1"
    assert streaming.targets == [
        ExecTarget(container_id="c", command=("sh", "-c", "x"), tty=True, stdin=True)
    ]


async def test_attach(calls, streaming):
    request = pb.AttachRequest(container_id="c", stdout=True, stderr=True)
    assert (await calls.attach(request)).url == "http://127.0.0.1:1/attach/1"
    assert streaming.targets == [AttachTarget(container_id="c", stdout=True, stderr=True)]


async def test_port_forward(calls, streaming):
    request = pb.PortForwardRequest(pod_sandbox_id="p", port=[80, 443])
    assert (await calls.port_forward(request)).url == "http://127.0.0.1:1/portforward/1"
    assert streaming.targets == [PortForwardTarget(pod_id="p", ports=(80, 443))]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("exec", pb.ExecRequest(cmd=["sh"], stdout=True)),
        ("exec", pb.ExecRequest(container_id="c", stdout=True)),
        ("exec", pb.ExecRequest(container_id="c", cmd=[""], stdout=True)),
        ("exec", pb.ExecRequest(container_id="c", cmd=["a\0b"], stdout=True)),
        ("exec", pb.ExecRequest(container_id="c", cmd=["sh"])),
        ("exec", pb.ExecRequest(container_id="c", cmd=["sh"], tty=True, stderr=True)),
        ("attach", pb.AttachRequest(stdout=True)),
        ("attach", pb.AttachRequest(container_id="c")),
        ("attach", pb.AttachRequest(container_id="c", tty=True, stderr=True)),
        ("port_forward", pb.PortForwardRequest(port=[80])),
        ("port_forward", pb.PortForwardRequest(pod_sandbox_id="p", port=[0])),
        ("port_forward", pb.PortForwardRequest(pod_sandbox_id="p", port=[-1])),
        ("port_forward", pb.PortForwardRequest(pod_sandbox_id="p", port=[65536])),
        ("port_forward", pb.PortForwardRequest(pod_sandbox_id="p", port=[80] * 101)),
    ],
)
async def test_requests_that_are_refused(calls, streaming, method, request_):
    with pytest.raises(InvalidArgument):
        await getattr(calls, method)(request_)
    assert streaming.targets == []


@pytest.mark.parametrize("error", [NotFound("no container c"), ResourceExhausted("too many")])
async def test_what_the_server_refuses_is_the_calls_own_failure(calls, streaming, error):
    streaming.fail = error
    with pytest.raises(type(error)):
        await calls.exec(pb.ExecRequest(container_id="c", cmd=["sh"], stdout=True))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (["PATH=/bin"], ["PATH=/bin", "TERM=xterm"]),
        (["TERM=vt100", "PATH=/bin"], ["TERM=vt100", "PATH=/bin"]),
        (["TERMINFO=/x"], ["TERMINFO=/x", "TERM=xterm"]),
    ],
)
def test_a_process_on_a_terminal_knows_of_one(env, expected):
    plain = oci.Process(
        user=oci.User(uid=5, gid=6),
        args=("sh",),
        env=tuple(env),
        cwd="/",
        capabilities=oci.ProcessCapabilities(),
    )
    process = json.loads(on_terminal(oci.encode(plain)))
    assert process["terminal"] is True
    assert process["env"] == expected
    assert (process["user"]["uid"], process["user"]["gid"]) == (5, 6)
