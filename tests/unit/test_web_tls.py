"""The small certificate authority and the contexts."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509

from dm.common import tls
from dm.common.errors import ConfigurationError


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """Shake hands in memory; return the protocol version."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return here.version()


def test_issued_certificates_work_for_their_names_only(tmp_path):
    authority = tls.make_authority(tmp_path)
    certificate, key = tls.issue(tmp_path, ["localhost", "127.0.0.1", "::1", "dm.example.org"], "storage")
    assert (certificate.name, key.name) == ("storage.pem", "storage.key")
    server, client = tls.server_context(certificate, key), tls.client_context(authority)
    for name in ("localhost", "127.0.0.1", "::1", "dm.example.org"):
        assert handshake(server, client, name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, tls.client_context(), "localhost")


def test_keys_are_private_and_the_authority_is_made_once(tmp_path):
    directory = tmp_path / "a" / "b"
    first = tls.make_authority(directory).read_bytes()
    assert tls.make_authority(directory).read_bytes() == first
    certificate, key = tls.issue(directory, ["localhost"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600
    before = certificate.read_bytes()
    tls.issue(directory, ["localhost"])
    assert certificate.read_bytes() != before
    assert sorted(path.name for path in directory.iterdir()) == ["ca.key", "ca.pem", "server.key", "server.pem"]


def test_the_certificate_says_what_it_is_for(tmp_path):
    tls.make_authority(tmp_path)
    certificate = x509.load_pem_x509_certificate(tls.issue(tmp_path, ["localhost"])[0].read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="No certificate authority"):
        tls.issue(tmp_path, ["localhost"])
    with pytest.raises(ConfigurationError, match="at least one host name"):
        tls.issue(tmp_path, [])
    with pytest.raises(ConfigurationError, match=r"CA file .*missing\.pem cannot be used: No such file"):
        tls.client_context(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ConfigurationError, match=r"empty\.pem cannot be used"):
        tls.client_context(tmp_path / "empty.pem")
    with pytest.raises(ConfigurationError, match=r"TLS file .*missing\.pem cannot be read"):
        tls.server_context(tmp_path / "missing.pem", tmp_path / "missing.key")
    with pytest.raises(ConfigurationError, match=r"TLS certificate .* cannot be used"):
        tls.server_context(tmp_path / "empty.pem", tmp_path / "empty.pem")
