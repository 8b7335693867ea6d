"""Creations that are called off at any moment, by several at once, and again while they undo."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import WEB_SERVER
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


def test_clients_that_leave_at_any_moment(node: Node) -> None:
    """Of calls that end with their client: commands, and the removal and pulls of an image."""
    moments = random.Random(3)
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    exec_request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "sleep 0.02; echo"])
    spec = api.ImageSpec(image=WEB_SERVER)
    pull_request = api.PullImageRequest(image=spec)
    remove_request = api.RemoveImageRequest(image=spec)

    def leave(call: object, request: object) -> None:
        with suppress(grpc.RpcError):
            call(request, timeout=moments.uniform(0.001, LATEST_S))  # type: ignore[operator]

    with ThreadPoolExecutor(4) as clients:
        for _ in range(3 * ROUNDS):
            calls = [
                clients.submit(leave, node.runtime.ExecSync, exec_request),
                clients.submit(leave, node.runtime.ExecSync, exec_request),
                clients.submit(leave, node.images.PullImage, pull_request),
            ]
            time.sleep(moments.uniform(0, LATEST_S))
            leave(node.images.RemoveImage, remove_request)
            for each in calls:
                each.result()
    node.images.PullImage(pull_request, timeout=PATIENCE_S)
    node.images.RemoveImage(remove_request, timeout=PATIENCE_S)
    until(lambda: not node.processes_doing("sleep 0.02"), "the commands have ended")
    node.remove_everything()
    node.assert_clean()
