"""Nodes for the cells of the fault matrix; see `test_register`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.fixtures import bystander, certs_d, handler, node, shared_bystander, shared_node

__all__ = ["bystander", "certs_d", "handler", "node", "shared_bystander", "shared_node"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who drives a daemon does it as root; the census of its node is the leak check."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and "certs_d" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root(leaks=True))
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slow)
