"""Nodes for the cells of the fault matrix; see `test_register`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.cells import register
from tests.kit.fixtures import bystander, certs_d, handler, node, shared_bystander, shared_node

__all__ = ["bystander", "certs_d", "handler", "node", "shared_bystander", "shared_node"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Who drives a daemon does it as root; the census of its node is the leak check.

    The whole matrix is for hack/faults, which says so in the environment. Everybody else runs the
    short choice; what is left out is counted as deselected.
    """
    here = Path(__file__).parent
    quick = {cell.name for cell in register() if cell.quick}
    left_out: list[pytest.Item] = []
    for item in items:
        if item.path.is_relative_to(here) and "certs_d" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root(leaks=True))
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slow)
            held = {name for mark in item.iter_markers("cell") for name in mark.args}
            if not held & quick and not os.environ.get("PODWRIGHT_WHOLE_MATRIX"):
                left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
