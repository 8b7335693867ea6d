import asyncio
import contextlib
import logging
import os
import socket
import stat

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from cri.rpc.method import Method, StreamCall, UnaryCall
from cri.rpc.service import build_methods
from cri.server import RpcServer, claim_run_root, remove_stale_socket
from cri.tidying import Activity
from protos import api_pb2 as pb
from sandbox.host.clock import SystemClock
from sandbox.host.errors import FailedPrecondition, Internal, InvalidArgument, NotFound
from tests.fakes.daemon import (
    ExecOutput,
    FakeContainers,
    FakeEvents,
    FakeImages,
    FakeNode,
    FakePods,
    FakeUsages,
    RecordingObserver,
)
from tests.fakes.streaming import FakeStreaming

RUNTIME = "/runtime.v1.RuntimeService/"


class Daemon:
    def __init__(self, tmp_path):
        self.pods = FakePods()
        self.containers = FakeContainers()
        self.images = FakeImages()
        self.node = FakeNode()
        self.observer = RecordingObserver()
        self.socket = tmp_path / "s"
        self.limit_bytes = 16 * 1024 * 1024
        self.activity = Activity()
        self.extra = []

    @contextlib.asynccontextmanager
    async def serving(self):
        methods = build_methods(
            pods=self.pods,
            containers=self.containers,
            images=self.images,
            node=self.node,
            usages=FakeUsages(),
            streaming=FakeStreaming(),
            events=FakeEvents(),
            clock=SystemClock(),
            version="1.2.3",
        )
        server = RpcServer(
            [*methods, *self.extra],
            socket_path=self.socket,
            observer=self.observer,
            clock=SystemClock(),
            message_limit_bytes=self.limit_bytes,
            activity=self.activity,
        )
        await server.start()
        channel = grpc.aio.insecure_channel(
            f"unix:{self.socket}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        try:
            yield channel
        finally:
            await channel.close()
            await server.stop(None)


@pytest.fixture
def daemon(tmp_path):
    return Daemon(tmp_path)


async def call(channel, method, request, response_class=Empty, **options):
    data = request if isinstance(request, bytes) else request.SerializeToString()
    answer = await channel.unary_unary(RUNTIME + method)(data, **options)
    return response_class.FromString(answer)


async def until(condition):
    """Let the loop run until something that another task does has happened."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def failure(channel, method, request, **options):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, request, **options)
    return caught.value.code(), caught.value.details()


async def test_a_call_is_answered_counted_and_logged(daemon, caplog):
    caplog.set_level(logging.DEBUG, logger="rpc")
    async with daemon.serving() as channel:
        answer = await call(channel, "Version", pb.VersionRequest(), pb.VersionResponse)
    assert answer.runtime_name == "podwright"
    assert answer.runtime_version == "1.2.3"
    assert answer.runtime_api_version == "v1"
    assert answer.version
    assert daemon.observer.ended == [("Version", "OK")]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG] == ["Version"]


async def test_the_log_names_what_a_call_is_about_and_what_it_made(daemon, caplog):
    caplog.set_level(logging.INFO, logger="rpc")
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="ns"),
        annotations={"token": "hunter2"},
    )
    async with daemon.serving() as channel:
        request = pb.RunPodSandboxRequest(config=config)
        answer = await call(channel, "RunPodSandbox", request, pb.RunPodSandboxResponse)
    [record] = [r for r in caplog.records if r.getMessage() == "RunPodSandbox"]
    fields = record.podwright_fields
    assert fields.pop("took_ms") >= 0
    assert fields == {"name": "ns/web", "attempt": "0", "pod": answer.pod_sandbox_id}


async def test_bytes_that_are_no_message(daemon):
    async with daemon.serving() as channel:
        for data in (b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0a" * 100_000):
            code, text = await failure(channel, "StopPodSandbox", data)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "are not a StopPodSandboxRequest" in text
        assert (await call(channel, "Status", b"", pb.StatusResponse)).status.conditions
    assert daemon.pods.calls == []


async def test_deep_nesting_is_refused(daemon):
    deep = b""
    for _ in range(200):
        # NamespaceOption is not recursive, groups are: field 1, wire type 3, without an end.
        deep = b"\x0b" + deep
    async with daemon.serving() as channel:
        code, _ = await failure(channel, "StopPodSandbox", deep)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_requests_over_the_limit_are_refused_and_others_served(daemon):
    big = pb.StopPodSandboxRequest(pod_sandbox_id="x" * (16 * 1024 * 1024))
    async with daemon.serving() as channel:
        code, _ = await failure(channel, "StopPodSandbox", big)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        below = pb.StopPodSandboxRequest(pod_sandbox_id="x" * (16 * 1024 * 1024 - 64))
        code, _ = await failure(channel, "StopPodSandbox", below)
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_over_the_limit_name_the_streaming_method(daemon):
    daemon.limit_bytes = 100
    async with daemon.serving() as channel:
        for number in range(3):
            await daemon.pods.run(config_of(str(number)), "")
        code, text = await failure(channel, "ListPodSandbox", b"")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "StreamPodSandboxes" in text
    assert daemon.observer.ended == [("ListPodSandbox", "RESOURCE_EXHAUSTED")]


def config_of(name):
    from sandbox.model import PodConfig, PodMetadata

    return PodConfig(metadata=PodMetadata(name=name, uid="u", namespace="ns"))


async def test_an_unplanned_exception_is_told_to_the_log_alone(daemon, caplog):
    caplog.set_level(logging.INFO, logger="rpc")
    daemon.pods.fail["stop"] = ValueError("password=hunter2 /secret/path")
    request = pb.StopPodSandboxRequest(pod_sandbox_id="abc")
    async with daemon.serving() as channel:
        code, text = await failure(channel, "StopPodSandbox", request)
        assert (await call(channel, "Version", b"", pb.VersionResponse)).version
    assert code is grpc.StatusCode.INTERNAL
    assert text.startswith("internal error in StopPodSandbox; see the daemon's log, id ")
    assert "hunter2" not in text
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    fields = record.podwright_fields
    assert fields["id"] == text.split()[-1]
    assert fields["pod"] == "abc"
    assert "ValueError" in fields["trace"]


async def test_a_planned_failure_has_its_code_text_and_one_log_line_with_replay(daemon, caplog):
    caplog.set_level(logging.INFO, logger="rpc")
    daemon.pods.fail["stop"] = Internal(
        "crun kill failed", hint="look at it", replay="crun --root /x kill abc", pod="abc"
    )
    async with daemon.serving() as channel:
        code, text = await failure(
            channel, "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id="abc")
        )
    assert (code, text) == (
        grpc.StatusCode.INTERNAL,
        "crun kill failed (pod=abc); look at it",
    )
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.getMessage() == "StopPodSandbox failed"
    assert record.podwright_fields["replay"] == "crun --root /x kill abc"


async def test_the_clients_own_mistakes_are_no_errors_of_the_node(daemon, caplog):
    caplog.set_level(logging.INFO, logger="rpc")
    async with daemon.serving() as channel:
        code, _ = await failure(
            channel, "PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id="nope")
        )
    assert code is grpc.StatusCode.NOT_FOUND
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_the_first_planned_failure_of_a_group_is_the_answer(daemon):
    daemon.pods.fail["stop"] = ExceptionGroup(
        "steps", [ExceptionGroup("inner", [RuntimeError("x"), NotFound("no such thing")])]
    )
    async with daemon.serving() as channel:
        code, text = await failure(
            channel, "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id="abc")
        )
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "no such thing")


@pytest.mark.slow
async def test_a_client_that_gives_up_is_counted_and_others_go_on(daemon):
    daemon.pods.gate = asyncio.Event()
    async with daemon.serving() as channel:
        request = pb.StopPodSandboxRequest(pod_sandbox_id="abc")
        # As long as it takes a busy machine to bring the call to the server at all.
        for patience_s in (0.2, 1.0, 5.0, 25.0):
            code, _ = await failure(channel, "StopPodSandbox", request, timeout=patience_s)
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            if daemon.pods.calls:
                break
        pending = channel.unary_unary(RUNTIME + "StopPodSandbox")(request.SerializeToString())
        await until(lambda: len(daemon.pods.calls) == 2)
        pending.cancel()
        await until(lambda: len(daemon.observer.ended) == 2)
        await call(channel, "Version", b"", pb.VersionResponse)
    assert sorted(daemon.observer.ended) == [
        ("StopPodSandbox", "CANCELLED"),
        ("StopPodSandbox", "DEADLINE_EXCEEDED"),
        ("Version", "OK"),
    ]


async def test_what_changes_something_counts_as_under_way_until_it_ends_however_that_is(daemon):
    daemon.pods.gate = asyncio.Event()
    async with daemon.serving() as channel:
        stop = pb.StopPodSandboxRequest(pod_sandbox_id="abc").SerializeToString()
        begun = [channel.unary_unary(RUNTIME + "StopPodSandbox")(stop) for _ in range(3)]
        await until(lambda: len(daemon.pods.calls) == 3)
        await call(channel, "Version", b"", pb.VersionResponse)
        await call(channel, "ListPodSandbox", b"", pb.ListPodSandboxResponse)
        assert daemon.activity.under_way == 3
        begun[0].cancel()
        await until(lambda: daemon.activity.under_way == 2)
        daemon.pods.fail["stop"] = Internal("it does not stop")
        daemon.pods.gate.set()
        await until(lambda: daemon.activity.under_way == 0)
        await asyncio.wait_for(daemon.activity.work(), 10)
        for each in begun:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await each


async def test_a_stream_does_not_count_while_it_lasts_and_does_when_it_has_ended(daemon):
    go_on = asyncio.Event()

    async def answers():
        yield b"x"
        await go_on.wait()

    daemon.extra = [test_stream("Pulls", answers)]
    async with daemon.serving() as channel:
        stream = channel.unary_stream("/test/Pulls")(b"")
        assert await stream.read() == b"x"
        assert daemon.activity.under_way == 0
        go_on.set()
        await asyncio.wait_for(daemon.activity.work(), 10)
        assert await stream.read() is grpc.aio.EOF


async def test_every_later_method_says_its_own_name(daemon):
    later = {
        "CheckpointContainer", "CheckpointPod", "RestorePod",
    }  # fmt: skip
    async with daemon.serving() as channel:
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.name not in later:
                    continue
                path = f"/{service.full_name}/{method.name}"
                if method.server_streaming:
                    answer = channel.unary_stream(path)(b"").read()
                else:
                    answer = channel.unary_unary(path)(b"")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await answer
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert caught.value.details().startswith(f"{method.name} is not implemented")
                later.discard(method.name)
    assert not later


async def test_methods_nobody_knows(daemon):
    async with daemon.serving() as channel:
        code, _ = await failure(channel, "Nope", b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_stream(method_name, answers):
    return Method("test", method_name, lambda data: StreamCall({}, answers), streams=True)


test_stream.__test__ = False


async def test_streams_are_checked_counted_and_closed(daemon):
    closed = asyncio.Event()

    async def endless():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def failing():
        yield b"one"
        raise NotFound("gone")

    async def large():
        yield b"x" * 101

    daemon.limit_bytes = 100
    daemon.extra = [
        test_stream("Endless", endless),
        test_stream("Failing", failing),
        test_stream("Large", large),
    ]
    async with daemon.serving() as channel:
        endless_call = channel.unary_stream("/test/Endless")(b"")
        assert await endless_call.read() == b"x"
        endless_call.cancel()
        await closed.wait()
        failing_call = channel.unary_stream("/test/Failing")(b"")
        assert await failing_call.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await failing_call.read()
        with pytest.raises(grpc.aio.AioRpcError, match="101 bytes"):
            await channel.unary_stream("/test/Large")(b"").read()
        await until(lambda: len(daemon.observer.ended) == 3)
    assert sorted(daemon.observer.ended) == [
        ("Endless", "CANCELLED"),
        ("Failing", "NOT_FOUND"),
        ("Large", "RESOURCE_EXHAUSTED"),
    ]


async def test_exec_output_is_cut_to_one_message(daemon):
    daemon.containers.output = ExecOutput(b"o" * (16 << 20), b"e" * 10, 3)
    async with daemon.serving() as channel:
        answer = await call(
            channel,
            "ExecSync",
            pb.ExecSyncRequest(container_id="c", cmd=["yes"], timeout=5),
            pb.ExecSyncResponse,
        )
    assert answer.stderr == b"e" * 10
    assert answer.exit_code == 3
    assert (16 << 20) - 128 < answer.ByteSize() <= 16 << 20


async def test_socket_has_its_mode_and_goes_at_the_end(daemon):
    before = os.umask(0)
    try:
        async with daemon.serving():
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
            assert os.umask(0) == 0
    finally:
        os.umask(before)


async def test_stale_socket_is_replaced(daemon):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(daemon.socket))
    async with daemon.serving() as channel:
        await call(channel, "Version", b"", pb.VersionResponse)


async def test_anything_else_at_the_path_is_left_alone(daemon):
    daemon.socket.write_text("precious")
    with pytest.raises(FailedPrecondition, match="no socket"):
        async with daemon.serving():
            pass
    assert daemon.socket.read_text() == "precious"
    link = daemon.socket.with_name("link")
    link.symlink_to(daemon.socket)
    with pytest.raises(FailedPrecondition):
        remove_stale_socket(link)
    assert link.is_symlink()


async def test_a_path_too_long_for_a_socket(daemon, tmp_path):
    daemon.socket = tmp_path / ("x" * 108)
    with pytest.raises(InvalidArgument, match="longer than 107 bytes"):
        async with daemon.serving():
            pass


def test_one_daemon_per_run_root(tmp_path):
    held = claim_run_root(tmp_path)
    try:
        with pytest.raises(FailedPrecondition, match="another podwright") as caught:
            claim_run_root(tmp_path)
        assert caught.value.fields["pid"] == str(os.getpid())
    finally:
        held.close()
    claim_run_root(tmp_path).close()


def test_a_unary_call_is_not_a_stream():
    async def answer():
        return b""

    assert UnaryCall({}, answer).subject == {}
