"""A connection to a container's monitor lives as long as somebody is attached."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.monitor import hub
from sandbox.monitor.hub import AttachHubs

BUNDLE = Path("/bundle")


class Connection:
    """Says nothing until it is hung up."""

    made: list[Connection]

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()
        self.closed = False

    @classmethod
    async def connect(cls, _bundle: Path) -> Connection:
        await asyncio.sleep(0)
        cls.made.append(cls())
        return cls.made[-1]

    async def receive(self) -> None:
        await self.hung_up.wait()

    def hang_up(self) -> None:
        self.hung_up.set()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("moment", range(6))
async def test_who_is_called_off_while_attaching_leaves_no_connection(
    moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "AttachSocket", Connection)
    Connection.made = []
    async with asyncio.TaskGroup() as group:
        hubs = AttachHubs(group)
        attaching = asyncio.ensure_future(hubs.attach(BUNDLE, stdin_once=False, stdout=True))
        for _ in range(moment):
            await asyncio.sleep(0)
        attaching.cancel()
        with suppress(asyncio.CancelledError):
            (await attaching).close()
        for _ in range(20):
            await asyncio.sleep(0)
        left = [one for one in Connection.made if not one.closed]
        for one in left:
            one.hang_up()
    assert left == []
    assert hubs._hubs == {}
