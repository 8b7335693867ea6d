"""Nodes for tests of the whole daemon; each test must leave its node as it found it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.fixtures import (
    STORAGE,
    bystander,
    certs_d,
    handler,
    node,
    shared_bystander,
    shared_node,
)

__all__ = [
    "STORAGE",
    "bystander",
    "certs_d",
    "handler",
    "node",
    "shared_bystander",
    "shared_node",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here drives a daemon as root; the census of its node is the leak check."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.root(leaks=True))
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slow)
