"""Checks of files and certificates: secrets that others can read, certificates that end, do not fit or lack a chain."""

from __future__ import annotations

import datetime
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from dm.common import tls
from dm.common.environment import read_login_file
from dm.common.errors import ConfigurationError
from dm.common.settings import WebSettings
from dm.deploy.checks.findings import Finding, error, ok, warning

_GUESSED = frozenset({"", "admin", "password", "dm", "dmadmin", "changeme", "secret", "test", "demo", "postgres"})
_CRITICAL_DAYS = 3


def private(name: str, path: Path) -> Finding:
    """Say whether a file of secrets is for its owner only."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o007:
        return error(name, f"{path} is open to everybody (mode {mode:04o}); run: chmod 600 {path}")
    if mode & 0o030:
        return error(name, f"{path} can be written or run by its group (mode {mode:04o}); run: chmod 600 {path}")
    if mode & 0o040:
        return warning(name, f"{path} is open to its group (mode {mode:04o}); unless that is meant: chmod 600 {path}")
    return ok(name, f"{path} is for its owner only")


def settings_file(path: Path, sections: dict[str, Any]) -> Iterator[Finding]:
    """Check the settings file itself: it needs to be private only where it holds passwords."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        yield error("settings.mode", f"{path} can be written by others (mode {mode:04o}); run: chmod go-w {path}")
    elif mode & 0o004 and _has_password(sections):
        yield error("settings.mode", f"{path} holds a password and is open to everybody; run: chmod o-r {path}")
    else:
        yield ok("settings.mode", f"{path} has mode {mode:04o}")


def _has_password(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_password(inner) or (str(key).endswith("password") and inner) for key, inner in value.items())
    if isinstance(value, list):
        return any(_has_password(inner) for inner in value)
    try:
        return isinstance(value, str) and "://" in value and bool(urlsplit(value).password)
    except ValueError:
        return False


def login_file(name: str, path: Path) -> Iterator[Finding]:
    """Check a login file: private, readable, and no password that everybody tries first."""
    yield private(name, path)
    username, password = read_login_file(path)
    if password.lower() in _GUESSED or password == username:
        yield error(name, f"The password of {username} is one that everybody tries first; change it.")


def database_password(name: str, url: str) -> Iterator[Finding]:
    """Warn of a password in a database's URL that everybody tries first."""
    parts = urlsplit(url)
    if parts.password is not None and (parts.password.lower() in _GUESSED or parts.password == parts.username):
        yield error(name, f"The password of database account {parts.username} is one that everybody tries first.")


def certificate(name: str, settings: WebSettings, ca_file: Path | None, hosts: set[str]) -> Iterator[Finding]:
    """Check a service's certificate: fits its key, is valid for long enough, has the right names and a full chain.

    :param ca_file: authorities that clients trust; ``None``: the system's. :param hosts: names that clients use.
    """
    tls.server_context(settings.certificate, settings.key, minimum=settings.tls_minimum)
    chain = x509.load_pem_x509_certificates(settings.certificate.read_bytes())
    days = min((one.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400 for one in chain)
    if days < _CRITICAL_DAYS:
        yield error(name, f"{settings.certificate} ends in {days:.0f} days; renew it (no restart is needed).")
    elif days < settings.certificate_warning_days:
        yield warning(name, f"{settings.certificate} ends in {days:.0f} days; renew it (no restart is needed).")
    else:
        yield ok(name, f"{settings.certificate} is valid for {days:.0f} days")
    missing = sorted(host for host in hosts if not _covers(chain[0], host))
    if missing:
        yield error(f"{name}.names", f"{settings.certificate} is not good for {', '.join(missing)}; issue it anew.")
    elif hosts:
        yield ok(f"{name}.names", f"good for {', '.join(sorted(hosts))}")
    yield _chain(f"{name}.chain", chain, settings.certificate, ca_file)


def _chain(name: str, chain: list[x509.Certificate], file: Path, ca_file: Path | None) -> Finding:
    authorities = _authorities(ca_file)
    known = {authority.subject: authority for authority in authorities}
    at = chain[0]
    for _ in range(10):
        if at.subject in known and known[at.subject].public_key() == at.public_key():
            return ok(name, "leads to an authority that clients trust")
        issuer = known.get(at.issuer) or next((one for one in chain[1:] if one.subject == at.issuer), None)
        if issuer is None:
            return error(
                name,
                f"{file} lacks the certificate of {at.issuer.rfc4514_string()}, or {ca_file or 'the system'} does not "
                "trust it; append the intermediate certificates to the file.",
            )
        try:
            at.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, Exception) as failure:  # InvalidSignature has no base of its own
            return error(name, f"{file}: {at.subject.rfc4514_string()} is not signed by its issuer ({failure!r}).")
        at = issuer
    return error(name, f"{file}: the chain has no end.")


def _authorities(ca_file: Path | None) -> list[x509.Certificate]:
    if ca_file is not None:
        try:
            return x509.load_pem_x509_certificates(ca_file.read_bytes())
        except ValueError as failure:
            raise ConfigurationError(f"CA file {ca_file} holds no certificate: {failure}.") from failure
    context = ssl.create_default_context()
    return [x509.load_der_x509_certificate(der) for der in context.get_ca_certs(binary_form=True)]


def _covers(certificate: x509.Certificate, host: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    known = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    known |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    host = host.lower()
    return host in known or f"*.{host.partition('.')[2]}" in known
