"""Programs that know a secret: docker's credential helper protocol, its `get` half.

    printf registry.example | docker-credential-NAME get
    {"ServerURL": "registry.example", "Username": "somebody", "Secret": "…"}

A helper runs as root on the node, so it is looked for in the operator's directories only, and only
where nobody but root could have put it; PATH plays no part. It gets the address on standard input,
an environment that holds nothing of the daemon's but the proxy, half a minute and 64 KiB. What it
prints is a secret, also when it fails: none of it reaches a message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.credentials import Credential, from_auth_config
from imageservice.errors import CredentialHelperFailed, CredentialInvalid
from sandbox.host.dropins import check_trusted
from sandbox.host.errors import NotFound, PodwrightError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from imageservice.auth_files import HelperName
    from sandbox.host.processes import ProcessRunner

#: Those of clouds ask a metadata service and then a token service.
TIMEOUT_S: Final = 30.0
OUTPUT_LIMIT_BYTES: Final = 64 * 1024
#: The user name that stands for "the secret is an identity token" (docker-credential-helpers).
TOKEN_USER: Final = "<token>"  # noqa: S105 - not a secret
#: How helpers say that they have none; docker compares with this very text.
_NONE: Final = b"credentials not found in native keychain"


class _Answer(msgspec.Struct, frozen=True):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


class CredentialHelpers:
    """Runs them. For one event loop."""

    def __init__(
        self, runner: ProcessRunner, directories: Sequence[Path], *, env: Mapping[str, str]
    ) -> None:
        """Nothing is looked at before the first question.

        Args:
            runner: starts the programs.
            directories: where they are looked for, in this order; none: no helper is ever run.
            env: what they get besides a plain PATH and LANG.
        """
        self._runner = runner
        self._directories = tuple(directories)
        self._env = dict(env)

    async def get(self, wanted: HelperName) -> Credential | None:
        """The secret for a server, or None when the helper has none.

        Raises:
            CredentialHelperFailed: see the module's text; the reason names program and server.
        """
        program = await asyncio.to_thread(self._program, wanted)
        what = f"credential helper {program} for {wanted.server}"
        try:
            finished = await self._runner.run(
                [str(program), "get"],
                env=self._env,
                stdin=wanted.server.encode(),
                timeout_s=TIMEOUT_S,
                output_limit_bytes=OUTPUT_LIMIT_BYTES,
            )
        except PodwrightError as error:
            raise CredentialHelperFailed(f"{what}: {error.message}") from error
        if finished.exit_status != 0:
            if finished.stdout.strip() == _NONE:
                return None
            raise CredentialHelperFailed(
                f"{what} failed with exit status {finished.exit_status}",
                hint=f"see what it says: echo {wanted.server} | {program} get",
            )
        return _credential(finished.stdout, what)

    def _program(self, wanted: HelperName) -> Path:
        name = f"docker-credential-{wanted.name}"
        for directory in self._directories:
            path = directory / name
            try:
                check_trusted(path)
            except NotFound:
                continue
            except PodwrightError as error:
                raise CredentialHelperFailed(
                    f"credential helper for {wanted.server} is not run: {error.message}",
                    hint=error.hint,
                ) from error
            return path
        looked = ", ".join(map(str, self._directories)) or "no directory is configured"
        raise CredentialHelperFailed(
            f"credential helper {name} for {wanted.server} is not there ({looked})",
            hint="install it, and name its directory in image.credential_helper_dirs",
        )


def _credential(output: bytes, what: str) -> Credential | None:
    try:
        answer = msgspec.json.decode(output, type=_Answer)
        if answer.username == TOKEN_USER:
            return from_auth_config(identity_token=answer.secret)
        return from_auth_config(username=answer.username, password=answer.secret)
    except CredentialInvalid as error:
        raise CredentialHelperFailed(f"{what}: {error.message}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The cause would quote the secret.
        raise CredentialHelperFailed(f"{what} did not answer with a JSON document") from None
