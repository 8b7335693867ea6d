"""The streaming server as the RPC classes see it: URLs that name what was asked for."""

from __future__ import annotations

from cri.streaming.targets import KINDS, AttachTarget, ExecTarget, PortForwardTarget, Target


class FakeStreaming:
    """Records targets; raises `fail` where it is set."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.fail: Exception | None = None

    def _url(self, target: Target) -> str:
        if self.fail is not None:
            raise self.fail
        self.targets.append(target)
        return f"http://127.0.0.1:1/{KINDS[type(target)]}/{len(self.targets)}"

    def exec_url(self, target: ExecTarget) -> str:
        return self._url(target)

    def attach_url(self, target: AttachTarget) -> str:
        return self._url(target)

    def portforward_url(self, target: PortForwardTarget) -> str:
        return self._url(target)
