"""TLS for the streaming server: an operator's pair of files, or a certificate made at each start.

A self-made certificate keeps what is typed and shown from listeners on the wire; whom one talks to
it does not prove, since nobody has signed it. Its key never touches a disk.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from cri.streaming.settings import StreamingSettings

#: As long as what Kubernetes makes for itself; the daemon is started more often than that.
_LIFE: Final = datetime.timedelta(days=365)
_SKEW: Final = datetime.timedelta(hours=1)


def server_context(settings: StreamingSettings, now_ns: int) -> ssl.SSLContext | None:
    """What to listen with; None for plain TCP. Blocking.

    Args:
        settings: where the certificate is, if any.
        now_ns: wall clock, for a certificate made now.

    Raises:
        InvalidArgument: the files are missing, unreadable or do not belong together.
    """
    if settings.tls == "off":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls == "pair":
        assert settings.tls_cert is not None, "checked by StreamingSettings"
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(
                f"streaming certificate cannot be used: {error}",
                certificate=str(settings.tls_cert),
                key=str(settings.tls_key),
            ) from error
        return context
    host, _ = settings.listen()
    fd = os.memfd_create("streaming-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, self_made_pem(host, now_ns))
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def self_made_pem(host: str, now_ns: int) -> bytes:
    """A certificate for this node and its key, in one PEM text."""
    # Imported here: most nodes never need it, and it is a large library.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "podwright streaming")])
    addresses = {ipaddress.ip_address(text) for text in (host, "127.0.0.1", "::1")}
    now = datetime.datetime.fromtimestamp(now_ns / 1e9, datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    *(x509.DNSName(text) for text in ("localhost", socket.gethostname())),
                    *(x509.IPAddress(address) for address in sorted(addresses, key=str)),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
