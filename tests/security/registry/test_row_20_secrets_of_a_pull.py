"""Row 20: secrets of a pull in error texts, logs, verbose answers and files.

Every form of a credential that the CRI has goes along with pulls that fail and with one that
succeeds; a reference and a registry's name hold one where they should not. Afterwards the secret is
looked for in every answer, in the daemon's log and in every file of its state.
"""

from __future__ import annotations

import base64
import secrets

import grpc

from protos import api_pb2 as api
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node
from tests.kit.walks import content_of, files_below


def test_a_pull_leaves_its_secret_nowhere(node: Node) -> None:
    secret = f"hunter2{secrets.token_hex(8)}"
    pair = base64.b64encode(f"alice:{secret}".encode()).decode()
    credentials = [
        api.AuthConfig(username="alice", password=secret),
        api.AuthConfig(auth=pair),
        api.AuthConfig(identity_token=secret),
        api.AuthConfig(registry_token=secret),
        api.AuthConfig(auth=secret),  # no base64 of a pair: refused, not quoted
        api.AuthConfig(username="alice", password=f"{secret}\n"),
    ]
    images = [
        BUSYBOX,
        "hostile.localhost/no-such:1",
        f"alice:{secret}@hostile.localhost/a:1",
        f"https://alice:{secret}@hostile.localhost/a:1",
        "127.0.0.1:9/nobody-listens:1",
    ]
    told: list[str] = []
    for image in images:
        for auth in credentials:
            request = api.PullImageRequest(image=api.ImageSpec(image=image), auth=auth)
            try:
                told.append(str(node.images.PullImage(request, timeout=60)))
            except grpc.RpcError as error:
                told.append(str(error.details()))  # type: ignore[attr-defined]
    status = node.images.ImageStatus(
        api.ImageStatusRequest(image=api.ImageSpec(image=BUSYBOX), verbose=True), timeout=60
    )
    told += [str(status), str(node.runtime.Status(api.StatusRequest(verbose=True), timeout=60))]
    for words in (secret, pair):
        for answer in told:
            assert words not in answer
        assert words not in node.log.read_text(errors="replace")
        for path, about in files_below(node.state_root, node.run_root):
            if about.st_size < 64 << 20:
                assert words.encode() not in content_of(path), path
