"""What `podwright check` says of additional image stores."""

from __future__ import annotations

from pathlib import Path

from cri.check.finding import Level
from cri.check.stores import additional_stores
from cri.render_status import store_lines
from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from sandbox.host.database import Database


async def store(root: Path) -> Path:
    root.mkdir(mode=0o700)  # noqa: ASYNC240 - a test
    database = await Database.open(
        root / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    await database.close()
    return root


async def test_each_is_told_once_with_what_it_has(tmp_path: Path) -> None:
    root = await store(tmp_path / "store")
    [found] = additional_stores([root, root])
    assert (found.level, found.remedy) == (Level.OK, "")
    assert found.detail == f"{root}: 0 images of 0 layers"


def test_a_missing_one_is_a_warning_with_its_remedy(tmp_path: Path) -> None:
    [found] = additional_stores([tmp_path / "none"])
    assert found.level is Level.WARNING
    assert str(tmp_path / "none") in found.detail
    assert "mount its disk" in found.remedy
    assert "mount its disk" not in found.detail


async def test_one_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    root = await store(tmp_path / "store")
    root.chmod(0o777)
    [found] = additional_stores([root])
    assert "written to by others" in found.detail
    assert found.remedy == "give it to root, mode 0700"


async def test_one_that_is_in_use_says_how_to_end_that(tmp_path: Path) -> None:
    root = await store(tmp_path / "store")
    (root / "catalog.db-wal").write_bytes(b"changes")
    [found] = additional_stores([root])
    assert "not closed in order" in found.detail
    assert "podwright verify --root" in found.remedy


def test_status_has_a_line_for_each_and_its_problems() -> None:
    facts = {"images": 2, "layers": 5, "problems": ["half of it is gone"]}
    assert store_lines({"/mnt/x": facts}) == [
        "additional images: 2 of 5 layers at /mnt/x",
        "  half of it is gone",
    ]
    assert store_lines({}) == []
