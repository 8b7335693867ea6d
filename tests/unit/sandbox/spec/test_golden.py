"""Documents as they were agreed on; `hack/regolden` writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.spec_cases import CASES, rendered

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "specs"


@pytest.mark.parametrize("name", CASES)
def test_document(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.json").read_text(encoding="utf-8")


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)
