import asyncio
import json
from contextlib import aclosing

import pytest

from cri.rpc.progress import progress_method
from imageservice.progress import Progress, Stage
from sandbox.host.clock import SystemClock
from sandbox.host.errors import InvalidArgument, NotFound
from tests.fakes.daemon import FakeImage, FakeImages


@pytest.fixture
def images():
    images = FakeImages()
    images.add(FakeImage("sha256:1"), "busybox")
    return images


class NoWait(SystemClock):
    async def sleep(self, seconds):
        await asyncio.sleep(0)


def opened(images, data):
    return progress_method(images, NoWait()).open(data)


async def collect(images, **fields):
    call = opened(images, json.dumps({"image": "busybox", **fields}).encode())
    return [json.loads(part) async for part in call.answers()]


async def test_every_layer_is_told_and_the_id_comes_last(images):
    images.progress = [
        Progress("sha256:a", Stage.FETCHING, 1, 10),
        Progress("sha256:b", Stage.FETCHING, 1, 20),
        Progress("sha256:a", Stage.DONE, 10, 10),
    ]
    parts = await collect(images)
    last = {layer["id"]: layer for part in parts[:-1] for layer in part["layers"]}
    assert last["sha256:a"]["stage"] == "done"
    assert last["sha256:b"]["fetched_bytes"] == 1
    assert parts[-1] == {"image_ref": "sha256:1"}


async def test_a_failure_is_raised_at_the_end(images):
    images.progress = [Progress("sha256:a", Stage.FETCHING, 1, 10)]
    images.fail["pull"] = NotFound("no such image")
    with pytest.raises(NotFound):
        await collect(images)


async def test_credentials_go_to_the_image_service(images):
    await collect(images, username="u", password="p")
    [(_, image, credential)] = images.calls
    assert image == "busybox"
    assert (credential.username, credential.password) == ("u", "p")
    images.calls.clear()
    await collect(images)
    assert images.calls == [("pull", "busybox", None)]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"image": 1}', b'{"image": "a", "x": 1}', b'{"image": ""}'],
)
def test_requests_that_are_refused(images, data):
    with pytest.raises(InvalidArgument):
        opened(images, data)


async def test_who_stops_listening_stops_waiting(images):
    images.gate = asyncio.Event()
    images.progress = [Progress("sha256:a", Stage.FETCHING, 1, 10)]
    call = opened(images, b'{"image": "busybox"}')
    before = len(asyncio.all_tasks())
    async with aclosing(call.answers()) as answers:
        await anext(answers)
        assert len(asyncio.all_tasks()) == before + 1
    assert len(asyncio.all_tasks()) == before


async def test_a_layer_that_is_fetched_and_unpacked_at_once_tells_of_both(images):
    images.progress = [
        Progress("sha256:a", Stage.FETCHING, 6, 10),
        Progress("sha256:a", Stage.UNPACKING, 4, 10),
        Progress("sha256:a", Stage.FETCHING, 8, 10),
    ]
    parts = await collect(images)
    [layer] = parts[-2]["layers"]
    assert (layer["fetched_bytes"], layer["unpacked_bytes"]) == (8, 4)
