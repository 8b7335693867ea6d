"""Asking the process that judges signatures; what it cannot answer is refused."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import imageservice
from imageservice.errors import SignatureValidationFailed
from imageservice.trust.model import Answer, Question, answer_decoder, encode
from imageservice.trust.worker import CPU_S
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from sandbox.host.processes import ProcessRunner

#: Judging processes at once: each has 30 MiB while it lives.
_WIDTH: Final = 2


class Judges:
    """A few processes, each for one question. For one event loop."""

    def __init__(self, runner: ProcessRunner) -> None:
        self._runner = runner
        self._places = asyncio.Semaphore(_WIDTH)

    async def ask(self, question: Question) -> Answer:
        """The verdict; without any signature it needs no process.

        Raises:
            SignatureValidationFailed: there is no verdict.
        """
        if not question.signatures:
            label = question.demands[0].label
            return Answer(accepted=False, reason=f"{label}: the image has no signature")
        argv = [sys.executable, "-P", "-s", "-m", "imageservice.trust.worker"]
        # The package may be on the path by the daemon's environment only, which is not passed on.
        env = {"PYTHONPATH": str(Path(imageservice.__path__[0]).parent)}
        async with self._places:
            try:
                finished = await self._runner.run(
                    argv, env=env, stdin=encode(question), timeout_s=3 * CPU_S
                )
                if finished.exit_status == 0:
                    return answer_decoder.decode(finished.stdout)
                last = finished.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                reason = f"exit status {finished.exit_status}: {ascii(last)[:300]}"
            except (PodwrightError, msgspec.MsgspecError) as error:
                reason = str(error)
        raise SignatureValidationFailed(
            f"{question.reference}: its signatures cannot be verified", reason=reason
        )
