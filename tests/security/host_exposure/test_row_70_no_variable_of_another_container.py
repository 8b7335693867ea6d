"""Containers of one image, made at the same time, got each other's variables.

CVE-2021-21334, CVE-2020-14370: the list of variables of a cached image configuration was appended
to in place. Many containers of one image are made at once here, each with variables of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.kit.node import Node
from tests.kit.spec_files import document_of
from tests.security.conftest import Hostile

CONTAINERS = 100
PODS = 4
SLEEP = ["sleep", "1000"]


def test_a_hundred_at_once_have_their_own_variables_only(
    node: Node, hostile: Hostile, handler: str
) -> None:
    image = hostile.push("row-70", env=["PATH=/bin", "OF_IMAGE=1", "BOTH=image"])
    node.pull(image)
    pods = [node.run_pod(f"pod-{number}", handler=handler) for number in range(PODS)]

    def make(number: int) -> str:
        env = {f"SECRET_{number}": f"value-{number}", "BOTH": str(number)}
        return node.create(pods[number % PODS], f"c{number}", SLEEP, image=image, env=env)

    with ThreadPoolExecutor(25) as pool:
        containers = list(pool.map(make, range(CONTAINERS)))
    for number, container in enumerate(containers):
        process = document_of(node, container)["process"]
        assert isinstance(process, dict)
        assert sorted(process["env"]) == sorted(
            [
                f"SECRET_{number}=value-{number}",
                f"BOTH={number}",
                "OF_IMAGE=1",
                "PATH=/bin",
                f"HOSTNAME=pod-{number % PODS}",
            ]
        )
    # And as a container sees it, the last made and one without any of its own.
    node.start(containers[-1])
    told = node.exec(containers[-1], "env")[1]
    assert told.count("SECRET_") == 1
    plain = node.run(pods[0], "plain", SLEEP, image=image)
    assert "SECRET_" not in node.exec(plain, "env")[1]
    assert "BOTH=image" in node.exec(plain, "env")[1]
