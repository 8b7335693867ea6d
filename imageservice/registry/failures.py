"""Ours for what goes wrong between here and a registry, in words of ours.

The texts of libraries are not for people, and some quote URLs, of which a signed one is a secret.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

import h11

from imageservice.errors import RegistryProtocolError, RegistryUnavailable, RegistryUntrusted
from imageservice.registry.dial import NoneAnswers

if TYPE_CHECKING:
    from imageservice.registry.origins import Origin


def unreachable(message: str, *, hint: str = "") -> RegistryUnavailable:
    """For a registry that does not answer at all."""
    error = RegistryUnavailable(message, hint=hint)
    error.is_unreachable = True
    return error


def not_connected(error: OSError | UnicodeError, origin: Origin) -> RegistryUnavailable:
    """For what `asyncio` says of a name, a connection or a handshake of TLS."""
    match error:
        case ssl.SSLError():
            return untrusted(error, origin)
        case socket.gaierror() | UnicodeError():
            return unreachable(f"name {origin.host} cannot be resolved")
        case _:
            return unreachable(f"cannot connect to {origin}: {connect_reason(error)}")


def not_answered(error: OSError | h11.RemoteProtocolError, origin: Origin) -> RegistryUnavailable:
    """For what happens between the request and the end of the answer's head."""
    match error:
        case h11.RemoteProtocolError():
            return RegistryProtocolError(f"{origin} does not answer in HTTP within bounds")
        case ssl.SSLError():
            return untrusted(error, origin)
        case TimeoutError():
            return unreachable(f"{origin} did not answer in time")
        case _:
            return unreachable(f"connection to {origin} broke")


def untrusted(error: ssl.SSLError, origin: Origin) -> RegistryUntrusted:
    """For TLS that failed, the certificate told apart."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "") or "certificate is not valid"
        return RegistryUntrusted(
            f"TLS certificate of {origin} is not trusted: {ascii(str(why))[1:-1][:200]}",
            hint="put the authority's certificate into certs.d and name it as ca in hosts.toml",
        )
    return RegistryUntrusted(
        f"TLS with {origin} failed",
        hint="if the registry speaks plain HTTP, name it with http:// in its hosts.toml",
    )


def connect_reason(error: OSError | UnicodeError) -> str:
    """Why there is no connection, in the kernel's words: asyncio's own text tells addresses only.

    Of several addresses each may have failed for a reason of its own.
    """
    errors = error.errors if isinstance(error, NoneAnswers) else (error,)
    reasons = [
        os.strerror(cause.errno)
        if isinstance(cause, OSError) and cause.errno
        else "the other side ended it"
        for cause in errors
    ]
    return ", ".join(dict.fromkeys(reasons)).lower()
