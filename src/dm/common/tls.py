"""TLS: contexts for both sides, and a small certificate authority for demos, tests and stations without one.

Certificates are ECDSA P-256: a handshake costs a tenth of an RSA-2048 one.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dm.common.errors import ConfigurationError

CA_CERTIFICATE, CA_KEY = "ca.pem", "ca.key"
CA_DAYS, CERTIFICATE_DAYS = 3650, 825
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all of this kind
_CLOCK_SKEW = datetime.timedelta(hours=1)


def make_authority(directory: str | os.PathLike[str], name: str = "DM certificate authority") -> Path:
    """Make a certificate authority in ``directory`` (``ca.pem``, ``ca.key`` with mode 0600) unless it has one.

    :param name: the authority's common name.
    :returns: the path of ``ca.pem``, which clients trust.
    """
    folder = Path(directory)
    certificate_file, key_file = folder / CA_CERTIFICATE, folder / CA_KEY
    if certificate_file.exists() and key_file.exists():
        return certificate_file
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signing=True), critical=True)
    _write(key_file, _key_bytes(key), 0o600)
    _write(certificate_file, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate_file


def issue(directory: str | os.PathLike[str], names: Sequence[str], file: str = "server") -> tuple[Path, Path]:
    """Issue a server certificate signed by the authority in ``directory``.

    :param names: host names and IP addresses it is good for; the first is its common name.
    :param file: base name of the files: ``<file>.pem`` and ``<file>.key`` (mode 0600), replaced when present.
    :returns: the paths of certificate and key.
    :raises ConfigurationError: no names, or no authority there.
    """
    folder = Path(directory)
    if not names:
        raise ConfigurationError("A certificate needs at least one host name.")
    try:
        authority = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
        authority_key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except OSError as error:
        raise ConfigurationError(f"No certificate authority in {folder}: {error.strerror}; make one first.") from error
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"The authority's key {folder / CA_KEY} is not an elliptic curve key.")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(names[0][:64]), authority.subject, key.public_key(), CERTIFICATE_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signing=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = builder.add_extension(issuer_key, False).sign(authority_key, hashes.SHA256())
    certificate_file, key_file = folder / f"{file}.pem", folder / f"{file}.key"
    _write(key_file, _key_bytes(key), 0o600)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate_file, key_file


def server_context(
    certificate: str | os.PathLike[str], key: str | os.PathLike[str], *, minimum: str = "1.2"
) -> ssl.SSLContext:
    """Return the context of a service: TLS 1.2 or newer, only ciphers with forward secrecy and authenticated
    encryption, no renegotiation, no compression.

    :param certificate: PEM file, the server's own certificate first, then intermediate ones.
    :param key: PEM file of its unencrypted private key.
    :param minimum: lowest version, a key of :data:`VERSIONS`.
    :raises ConfigurationError: a file is missing, unreadable, or the two do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[minimum]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1
    for path in (certificate, key):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"TLS file {os.fspath(path)} cannot be read: {error.strerror}.") from error
    try:
        # the callback refuses encrypted keys: a service must not wait at a prompt for a passphrase
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"TLS certificate {os.fspath(certificate)} and key {os.fspath(key)} cannot be used: {error}."
        ) from error
    return context


def client_context(ca_file: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Return the context of a client: TLS 1.2 or newer, certificate and host name verified.

    :param ca_file: PEM file of the only authorities to trust; ``None`` trusts the system's.
    :raises ConfigurationError: the file is missing or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else os.fspath(ca_file))
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"CA file {os.fspath(ca_file or '')} cannot be used: {reason}.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signing,
        crl_sign=signing,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write beside and rename, so that nobody ever reads half a file or a key with a wide mode."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
    hidden.replace(path)
