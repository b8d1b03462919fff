"""Keys and certificates of the data plane: each party makes its own, and the others pin it.

There is no certificate authority: a certificate is self-signed, sent to the other side out of band, like the public
keys of identities, and pinned there. TLS then checks that the peer has the certificate's private key.

    FOLDER/
        own.key    private key, readable by its owner only
        own.pem    certificate, to be given to the other side
"""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...errors import InputError
from .. import private_file
from ..names import COORDINATOR as COORDINATOR

DAYS = 730
KEY_FILE, CERTIFICATE_FILE = "own.key", "own.pem"
_PUBLIC_FORM = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
# What cryptography raises for a certificate that it does not understand.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class OwnCertificate:
    """One party's private key and certificate, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def create(cls, name: str, *, days: int = DAYS, hosts: Sequence[str] = ()) -> OwnCertificate:
        """A fresh P-256 key and a certificate for it under `name`, valid from an hour ago.

        `hosts`: names and IP addresses of a SuperLink that uses it too, since Flower checks the host.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if name == COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in (name, *hosts)]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), private)

    def save(self, folder: Path) -> None:
        """Write both files; InputError if there is a key already, which is never overwritten."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            private_file.create(folder / KEY_FILE, self.key)
        except FileExistsError:
            raise InputError("key", str(folder / KEY_FILE), "is already there") from None
        private_file.write(folder / CERTIFICATE_FILE, self.certificate)

    @classmethod
    def load(cls, folder: Path) -> OwnCertificate:
        key = folder / KEY_FILE
        content = read(key)
        if private_file.mode_for_others(key) is not None:
            raise InputError("key", str(key), "must be readable by its owner alone (chmod 600)")
        return cls(read(folder / CERTIFICATE_FILE), content)

    def fits(self) -> bool:
        """Whether the key is the certificate's; ValueError for a key that is not of its form."""
        public = serialization.load_pem_private_key(self.key, None).public_key().public_bytes(*_PUBLIC_FORM)
        return public == public_key_of(x509.load_pem_x509_certificate(self.certificate))

    def server_credentials(self, trusted: Callable[[], bytes]) -> grpc.ServerCredentials:
        """For a server that talks only to owners of the `trusted` certificates, PEM one after another.

        Asked for anew at each connection, so that a certificate may be withdrawn or replaced while it listens.
        """

        def roots() -> bytes:
            # gRPC needs a root to ask for certificates at all: where nobody is left, only this one is trusted.
            return trusted() or self.certificate

        def configuration(pem: bytes) -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], pem)

        known, lock = roots(), threading.Lock()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC replaces what handshakes use when it is given anything, and handshakes at that moment have ended
            # the process (a reference counted below zero, in one of six runs with many connections).
            nonlocal known
            with lock:  # of two at once the later one must not put back what the earlier one had read
                if (found := roots()) == known:
                    return None
                known = found
                return configuration(found)

        return grpc.dynamic_ssl_server_credentials(
            configuration(known), changed, require_client_authentication=True
        )

    def channel_credentials(self, server: bytes) -> grpc.ChannelCredentials:
        """For a client that talks only to the owner of the `server` certificate."""
        return grpc.ssl_channel_credentials(server, self.key, self.certificate)


def certificate_of(pem: bytes, where: str) -> x509.Certificate:
    """The one certificate in a PEM file; InputError unless there is exactly one."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:  # read on first use, and what cannot be read raises only then
            _ = name_in(certificate), hosts_of(certificate), public_key_of(certificate)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE:
        found = []
    if len(found) != 1:
        raise InputError("certificate", where, "expected one certificate in PEM")
    return found[0]


def name_in(certificate: x509.Certificate) -> str:
    """The common name; empty if there is none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def public_key_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(*_PUBLIC_FORM)


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The host names and IP addresses that it is valid for, besides the party's own name."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(address) for address in found.get_values_for_type(x509.IPAddress)}
    return addresses | set(found.get_values_for_type(x509.DNSName)) - {name_in(certificate)}


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InputError("host", host, "expected an IP address, or a host's name in ASCII") from None


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the whole certificate, 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError("file", str(path), f"cannot be read ({type(error).__name__})") from None
