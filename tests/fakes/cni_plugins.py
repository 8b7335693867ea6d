"""Plugins for tests: `FaultyPlugin` installs the recording program, `ScriptedRunner` needs none.

`ScriptedRunner` is a `ProcessRunner` whose programs are Python callables by plugin name: it records
each run and answers at once, so a test of order, arguments and error handling spawns nothing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.host.processes import Finished

PROGRAM = Path(__file__).with_name("cni_plugin")


class FaultyPlugin:
    """The recording program under a plugin's name in a directory."""

    def __init__(self, directory: Path, name: str, **control) -> None:
        self.path = directory / name
        shutil.copy2(PROGRAM, self.path)
        self.control(**control)

    def control(self, **control) -> None:
        # In one step: a run of the program that reads it meanwhile must not find half of it.
        new = self.path.with_name(f"{self.path.name}.control.new")
        new.write_text(json.dumps(control))
        new.rename(self.path.with_name(f"{self.path.name}.control"))

    @property
    def calls(self) -> list[dict]:
        try:
            text = self.path.with_name(f"{self.path.name}.calls").read_text()
        except FileNotFoundError:
            return []
        # The last line may be one that is being written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def commands(self) -> list[str]:
        """The commands it got, without what readiness asks."""
        return [c["command"] for c in self.calls if c["command"] not in {"VERSION", "STATUS"}]


@dataclass
class Run:
    """One recorded run of a program."""

    plugin: str
    command: str
    env: dict[str, str]
    config: dict
    timeout_s: float | None
    output_limit_bytes: int


def finished(stdout: bytes | str | dict = b"", stderr: bytes = b"", exit_status: int = 0):
    """What a program left: a dict is printed as JSON."""
    if isinstance(stdout, dict):
        stdout = json.dumps(stdout)
    if isinstance(stdout, str):
        stdout = stdout.encode()
    return Finished(("plugin",), exit_status, stdout, stderr, 1_000_000, False)


def error(code: int, msg: str = "told to fail", **keys) -> Finished:
    """A failure in the protocol's own form."""
    return finished({"cniVersion": "1.0.0", "code": code, "msg": msg, **keys}, exit_status=1)


@dataclass
class ScriptedRunner:
    """Answers by plugin name; a list answers one run after the other, the last one for ever."""

    answers: dict[str, list] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def answer(self, plugin: str, *answers) -> None:
        """Each a Finished, an exception to raise, or a callable that takes the Run."""
        self.answers[plugin] = list(answers)

    async def run(
        self,
        argv,
        *,
        env=None,
        stdin=b"",
        timeout_s=None,
        output_limit_bytes=1024 * 1024,
        truncate=False,
        cwd=None,
        pass_fds=(),
        drain_s=1.0,
        finish_s=0.0,
        check=None,
    ):
        env = dict(env or {})
        run = Run(
            plugin=Path(argv[0]).name,
            command=env.get("CNI_COMMAND", ""),  # none: the program is asked who it is
            env=env,
            config=json.loads(stdin or b"{}"),
            timeout_s=timeout_s,
            output_limit_bytes=output_limit_bytes,
        )
        self.runs.append(run)
        queue = self.answers.get(run.plugin)
        if not queue:
            return self.default(run)
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer(run)
            if hasattr(answer, "__await__"):
                answer = await answer
        return answer

    async def spawn(self, argv, **options):
        raise AssertionError("plugins are never left running")

    def default(self, run: Run) -> Finished:
        """What a plugin that does as asked would print."""
        if run.command == "VERSION":
            spoken = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
            return finished({"cniVersion": "1.0.0", "supportedVersions": spoken})
        if run.command == "ADD":
            previous = run.config.get("prevResult")
            version = run.config["cniVersion"]
            return finished(
                previous or {"cniVersion": version, "ips": [{"address": "10.88.0.5/24"}]}
            )
        return finished()

    def seen(self, *commands: str) -> list[tuple[str, str]]:
        """(plugin, command) of every run, in order; only these commands, if given."""
        return [(r.plugin, r.command) for r in self.runs if not commands or r.command in commands]
