"""Creations that are called off at any moment, by several at once, and again while they undo."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc

from tests.kit.node import Node
from tests.kit.operations import SLEEP

#: Times that something is called off in each test; a creation takes 60 ms on the reference machine.
ROUNDS = 20
LATEST_S = 0.08


def run_attempt(node: Node, attempt: int, late_s: float) -> None:
    time.sleep(late_s)
    with suppress(grpc.RpcError):
        node.run_config(node.pod_config("pod", attempt=attempt))


def test_pods_whose_next_attempts_come_at_any_moment(node: Node) -> None:
    """The second one that comes calls off the first, too, which may be undoing itself already."""
    moments = random.Random(1)
    with ThreadPoolExecutor(3) as clients:
        for _ in range(ROUNDS):
            late = sorted(moments.uniform(0, LATEST_S) for _ in range(2))
            list(clients.map(lambda each: run_attempt(node, *each), enumerate((0.0, *late))))
            assert {pod.metadata.attempt for pod in node.pods()} >= {2}
            node.remove_everything()
            node.assert_clean()


def test_containers_whose_pod_is_stopped_and_removed_at_any_moment(node: Node) -> None:
    moments = random.Random(2)

    def create(pod: str, name: str) -> None:
        with suppress(grpc.RpcError):
            node.create(pod, name, SLEEP)

    with ThreadPoolExecutor(4) as clients:
        for _ in range(ROUNDS):
            pod = node.run_pod("pod")
            creating = [clients.submit(create, pod, name) for name in ("one", "two")]
            time.sleep(moments.uniform(0, LATEST_S))
            stopping = clients.submit(node.stop_pod, pod)
            time.sleep(moments.uniform(0, LATEST_S / 4))
            node.remove_pod(pod)
            for each in (*creating, stopping):
                each.result()
            assert not node.containers()
            node.remove_everything()
            node.assert_clean()
