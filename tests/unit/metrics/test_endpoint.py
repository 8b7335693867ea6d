import asyncio
import contextlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics.endpoint import CONNECTIONS_LIMIT, REQUEST_LIMIT_BYTES, MetricsEndpoint
from metrics.instruments import Instruments
from metrics.settings import MetricsSettings
from sandbox.host.errors import InvalidArgument


@contextlib.asynccontextmanager
async def serving(instruments, **settings):
    chosen = MetricsSettings(**{"address": "127.0.0.1:0", **settings})
    endpoint = MetricsEndpoint(instruments, chosen)
    await endpoint.start()
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def ask(endpoint, data):
    reader, writer = await asyncio.open_connection(*endpoint.address)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def get(target, method="GET"):
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def parsed(body):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def test_what_was_measured_is_served():
    instruments = Instruments("1.2.3")
    instruments.rpc("Version", "OK", 0.02)
    instruments.rpc("Version", "INTERNAL", 2.0)
    instruments.runtime_operation("create", "crun", 0.01, True)
    instruments.runtime_operation("create", "crun", 0.01, False)
    instruments.cni_operation("ADD", "bridge", 0.01, False)
    instruments.pulls.layer_fetched(fetched_bytes=1000)
    instruments.pulls.pull_ended(duration_s=3.0, error=None)
    instruments.pulls.pull_ended(duration_s=3.0, error=asyncio.CancelledError())
    instruments.watch_pods(lambda: {"READY": 2, "NOT_READY": 1})
    instruments.watch_containers(lambda: {"RUNNING": 3})
    async with serving(instruments) as endpoint:
        head, _, body = (await ask(endpoint, get("/metrics?x=1"))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"_created" not in body
    values = parsed(body.decode())
    method = ("method", "Version")
    assert values["podwright_rpc_duration_seconds_count", method] == 2
    assert values["podwright_rpc_duration_seconds_bucket", ("le", "0.025"), method] == 1
    assert values["podwright_rpc_errors_total", ("code", "INTERNAL"), method] == 1
    create = (("handler", "crun"), ("operation", "create"))
    assert values["podwright_runtime_operation_duration_seconds_count", *create] == 2
    assert values["podwright_runtime_operation_errors_total", *create] == 1
    add = (("operation", "ADD"), ("plugin", "bridge"))
    assert values["podwright_cni_operation_errors_total", *add] == 1
    assert values["podwright_image_pull_bytes_total",] == 1000
    assert values["podwright_image_pull_duration_seconds_count", ("result", "ok")] == 1
    assert values["podwright_image_pull_duration_seconds_count", ("result", "error")] == 0
    assert values["podwright_image_pull_duration_seconds_count", ("result", "cancelled")] == 1
    assert values["podwright_pods", ("state", "READY")] == 2
    assert values["podwright_containers", ("state", "RUNNING")] == 3
    assert values["podwright_process_resident_memory_bytes",] > 0
    assert values["podwright_build_info", *sorted(
        {"version": "1.2.3", "python": __import__("platform").python_version()}.items()
    )] == 1  # fmt: skip


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/healthz"), b"200 OK"),
        (get("/metrics", "HEAD"), b"200 OK"),
        (get("/"), b"404 Not Found"),
        (get("/metrics/../etc/passwd"), b"404 Not Found"),
        (get("/metrics", "POST"), b"405 Method Not Allowed"),
        (b"hello\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n" + b"x" * (REQUEST_LIMIT_BYTES + 1), b"400 Bad Request"),
    ],
)
async def test_answers_to_requests(request_bytes, status):
    async with serving(Instruments("1")) as endpoint:
        answer = await ask(endpoint, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in answer


async def test_head_has_no_body():
    async with serving(Instruments("1")) as endpoint:
        assert (await ask(endpoint, get("/healthz", "HEAD"))).endswith(b"\r\n\r\n")


async def test_a_client_that_says_nothing_is_sent_away():
    async with serving(Instruments("1"), request_timeout_s=0.01) as endpoint:
        assert await ask(endpoint, b"GET /met") == b""


async def test_connections_are_bounded():
    async with serving(Instruments("1")) as endpoint:
        idle = [await asyncio.open_connection(*endpoint.address) for _ in range(CONNECTIONS_LIMIT)]
        with contextlib.suppress(ConnectionResetError):
            assert await ask(endpoint, get("/healthz")) == b""
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        answer = b""
        while not answer:
            with contextlib.suppress(ConnectionResetError):
                answer = await ask(endpoint, get("/healthz"))
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_callback_that_fails_ends_one_scrape_only(caplog):
    instruments = Instruments("1")
    fail = True

    def count():
        if fail:
            raise RuntimeError("secret")
        return {"READY": 1}

    instruments.watch_pods(count)
    async with serving(instruments) as endpoint:
        answer = await ask(endpoint, get("/metrics"))
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in answer
        fail = False
        assert (await ask(endpoint, get("/metrics"))).startswith(b"HTTP/1.1 200 ")


async def test_no_address_no_listener():
    async with serving(Instruments("1"), address="") as endpoint:
        assert endpoint.address is None


async def test_an_address_in_use_costs_the_metrics_and_nothing_else(caplog):
    async with serving(Instruments("1")) as endpoint:
        taken = "{}:{}".format(*endpoint.address)
        async with serving(Instruments("1"), address=taken) as second:
            assert second.address is None
    assert "metrics are not served" in caplog.text


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:9190", ("127.0.0.1", 9190)),
        ("[::1]:0", ("::1", 0)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_addresses(address, parts):
    assert MetricsSettings(address=address).listen() == parts


@pytest.mark.parametrize(
    "address",
    ["localhost:1", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "1.2.3.4:-1", "a"],
)
def test_what_is_no_address(address):
    with pytest.raises(InvalidArgument, match="IP:PORT"):
        MetricsSettings(address=address)
