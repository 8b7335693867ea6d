"""The process that asks for the version: it is heard, told how often to ask, and ends."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.kit.calls import until
from tests.kit.pings import Pings


class _Runtime:
    """Answers Version until told to fail."""

    def __init__(self) -> None:
        self.failing = threading.Event()

    def version(self, _data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.failing.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "not\nnow")
        return b""


@pytest.fixture
def runtime() -> _Runtime:
    return _Runtime()


@pytest.fixture
def socket(tmp_path: Path, runtime: _Runtime) -> Iterator[Path]:
    handlers = {"Version": grpc.unary_unary_rpc_method_handler(runtime.version)}
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", handlers),)
    )
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    yield tmp_path / "s"
    server.stop(None).wait()


@pytest.mark.slow
def test_answers_failures_pauses_and_the_end(socket: Path, runtime: _Runtime) -> None:
    found: list[float | str] = []
    pings = Pings(socket, found.append, pause_s=0.01)
    try:
        until(lambda: len(found) >= 3, "it asks")
        assert all(isinstance(each, float) and each > 0 for each in found)
        runtime.failing.set()
        until(lambda: "failed: not now" in found, "it tells of failures")
        pings.every(3600)
        runtime.failing.clear()
        count = len(found)
        pings.every(0.01)
        until(lambda: len(found) > count + 3, "a shorter pause holds at once")
    finally:
        pings.close()
    assert isinstance(found[-1], float)


@pytest.mark.slow
def test_whoever_does_not_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nobody"
    with pytest.raises(RuntimeError, match="nobody: nothing answers"):
        Pings(path, lambda _: None, pause_s=1)
