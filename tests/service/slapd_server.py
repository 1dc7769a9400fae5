"""A real slapd for tests: mdb in a directory of its own, TLS, free ports, for the account that runs the tests.

::

    with running_slapd(directory) as slapd:
        slapd.url                                   # ldaps://localhost:port, verified by slapd.ca_file
        slapd.start_tls_url                         # ldap://localhost:port for StartTLS
        slapd.add_person("d123456", "password", uid_number=50001)
        slapd.members("group-name"), slapd.entry(dn), slapd.log()

Beneath :attr:`Slapd.base` stand ``ou=people``, ``ou=groups`` and ``ou=services``; the service account
``cn=dm,ou=services`` may do what ``etc/ldap/slapd-acl.conf`` of the repository gives it, and no more. Needs the
packages ``slapd`` and ``ldap-utils``; nothing of the system's own slapd is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dm.common import tls
from tests.service.acquisition_hosts import free_port, wait_for_port

BASE = "dc=facility,dc=example"
_SCHEMAS = ("core", "cosine", "inetorgperson", "nis")
_PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
_ACL = Path(__file__).parents[2] / "etc" / "ldap" / "slapd-acl.conf"


def program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found, f"{name} is not installed; run: make test-deps"
    return found


@dataclass
class Slapd:
    """A server; :meth:`start` and :meth:`stop` may be called again and again, its data stays.

    :param certificate: base name of its certificate in ``certificates`` beneath the directory, which is made with a
        good one, ``server``, when there is none. :param policy: with the overlay ``ppolicy``, which locks accounts.
    """

    directory: Path
    certificate: str = "server"
    base: str = BASE
    admin_password: str = "slapd-admin-secret"
    service_password: str = "slapd-service-secret"
    policy: bool = False
    port: int = field(default_factory=free_port)
    plain_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ldaps://localhost:{self.port}"

    @property
    def start_tls_url(self) -> str:
        return f"ldap://localhost:{self.plain_port}"

    @property
    def admin_dn(self) -> str:
        return f"cn=admin,{self.base}"

    @property
    def service_dn(self) -> str:
        """The account that DM binds with."""
        return f"cn=dm,ou=services,{self.base}"

    @property
    def people(self) -> str:
        return f"ou=people,{self.base}"

    @property
    def groups(self) -> str:
        return f"ou=groups,{self.base}"

    @property
    def ca_file(self) -> Path:
        return self.directory / "certificates" / "ca.pem"

    @property
    def password_file(self) -> Path:
        """Holds the password of :attr:`service_dn`."""
        return self.directory / "service.password"

    @property
    def log_file(self) -> Path:
        return self.directory / "slapd.log"

    @property
    def pid(self) -> int:
        assert self.process is not None, "slapd does not run"
        return self.process.pid

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the sub-table ``[storage.ldap]`` for this server."""
        return {
            "servers": [self.url],
            "ca_file": self.ca_file,
            "bind_dn": self.service_dn,
            "bind_password_file": self.password_file,
            "people_base": self.people,
            "group_base": self.groups,
            **changes,
        }

    def prepare(self) -> None:
        """Make certificates, configuration and the first entries."""
        (self.directory / "db").mkdir(parents=True)
        certificates = self.directory / "certificates"
        if not certificates.exists():
            certificates.mkdir()
            tls.make_authority(certificates)
            # libldap takes "localhost" for this machine's own name when it checks a certificate.
            tls.issue(certificates, ["localhost", "127.0.0.1", socket.gethostname()])
        self.password_file.write_text(self.service_password + "\n")
        self.password_file.chmod(0o600)
        acl = _ACL.read_text().replace("dc=facility,dc=example", self.base)
        schemas = "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in _SCHEMAS)
        (self.directory / "slapd.conf").write_text(
            f"{schemas}"
            f"modulepath /usr/lib/ldap\nmoduleload back_mdb\n{'moduleload ppolicy' if self.policy else ''}\n"
            f"pidfile {self.directory}/slapd.pid\nargsfile {self.directory}/slapd.args\n"
            "loglevel stats\nsizelimit unlimited\nidletimeout 0\n"
            f"TLSCACertificateFile {certificates}/ca.pem\n"
            f"TLSCertificateFile {certificates}/{self.certificate}.pem\n"
            f"TLSCertificateKeyFile {certificates}/{self.certificate}.key\n"
            "TLSProtocolMin 3.3\n"
            f'database mdb\nsuffix "{self.base}"\ndirectory {self.directory}/db\nmaxsize 1073741824\n'
            f'rootdn "{self.admin_dn}"\nrootpw {self.admin_password}\n'
            "index objectClass,uid,cn,gidNumber,uidNumber,memberUid eq\nindex description eq,sub\n"
            f"{acl}\n" + (f'overlay ppolicy\nppolicy_default "cn=policy,{self.base}"\n' if self.policy else "")
        )

    def start(self) -> None:
        """Start it, in the foreground, as a child of the tests."""
        first = not (self.directory / "slapd.conf").exists()
        if first:
            self.prepare()
        urls = f"ldaps://127.0.0.1:{self.port} ldap://127.0.0.1:{self.plain_port}"
        command = [program("slapd"), "-d", "stats", "-h", urls, "-f", str(self.directory / "slapd.conf")]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            for port in (self.port, self.plain_port):
                wait_for_port(port, self.process)
            if first:
                self._first_entries()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it, also a halted one."""
        process, self.process = self.process, None
        if process is None:
            return
        for number in (signal.SIGCONT, signal.SIGTERM):
            process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self) -> str:
        """Return what slapd logged so far: one line per operation, filters as it understood them."""
        return self.log_file.read_text(errors="replace")

    def add(self, ldif: str) -> None:
        """Add entries as the administrator."""
        self._run("ldapadd", [], ldif)

    def modify(self, ldif: str) -> None:
        """Change entries as the administrator."""
        self._run("ldapmodify", [], ldif)

    def delete(self, dn: str) -> None:
        """Remove an entry as the administrator."""
        self._run("ldapdelete", [dn])

    def search(self, base: str, filter: str = "(objectClass=*)", scope: str = "sub") -> dict[str, dict[str, list[str]]]:
        """Return entries by DN: lists of values by attribute."""
        arguments = ["-LLL", "-o", "ldif-wrap=no", "-s", scope, "-b", base, filter]
        found: dict[str, dict[str, list[str]]] = {}
        entry: dict[str, list[str]] = {}
        for line in self._run("ldapsearch", arguments).splitlines():
            name, separator, value = line.partition(": ")
            if name == "dn":
                entry = found.setdefault(value, {})
            elif separator:
                entry.setdefault(name.rstrip(":"), []).append(value)
        return found

    def entry(self, dn: str) -> dict[str, list[str]] | None:
        """Return an entry's attributes, or ``None``."""
        done = self._call("ldapsearch", ["-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", dn])
        if done.returncode == 32:
            return None
        assert done.returncode == 0, done.stderr
        entry: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            name, separator, value = line.partition(": ")
            if separator:
                entry.setdefault(name.rstrip(":"), []).append(value)
        return entry

    def members(self, group: str) -> set[str] | None:
        """Return who is in a group beneath ``ou=groups``, or ``None`` when there is no such group."""
        entry = self.entry(f"cn={group},{self.groups}")
        return None if entry is None else set(entry.get("memberUid", []))

    def add_person(self, username: str, password: str, uid_number: int = 50_000) -> str:
        """Add a posixAccount beneath ``ou=people`` and return its DN."""
        dn = f"uid={username},{self.people}"
        self.add(
            f"dn: {dn}\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nobjectClass: shadowAccount\n"
            f"uid: {username}\ncn: {username}\nsn: {username}\nuidNumber: {uid_number}\ngidNumber: 100\n"
            f"homeDirectory: /home/{username}\nloginShell: /bin/bash\nuserPassword: {password}\n"
        )
        return dn

    def password_is(self, dn: str, password: str) -> bool:
        """Whether somebody can bind so."""
        command = [program("ldapwhoami"), "-x", "-H", self.url, "-D", dn, "-w", password]
        return subprocess.run(command, env=self._environment(), capture_output=True, check=False).returncode == 0

    def _first_entries(self) -> None:
        name = self.base.split(",")[0].partition("=")[2]
        units = "".join(
            f"dn: ou={unit},{self.base}\nobjectClass: organizationalUnit\nou: {unit}\n\n"
            for unit in ("people", "groups", "services")
        )
        self.add(
            f"dn: {self.base}\nobjectClass: dcObject\nobjectClass: organization\no: facility\ndc: {name}\n\n{units}"
            f"dn: {self.service_dn}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: dm\n"
            f"userPassword: {self.service_password}\n"
        )
        if self.policy:
            self.add(
                f"dn: cn=policy,{self.base}\nobjectClass: pwdPolicy\nobjectClass: organizationalRole\ncn: policy\n"
                "pwdAttribute: userPassword\npwdLockout: TRUE\n"
            )

    def _environment(self) -> Mapping[str, str]:
        return os.environ | {"LDAPTLS_CACERT": str(self.ca_file), "LDAPTLS_REQCERT": "demand"}

    def _call(self, name: str, arguments: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        # Plain LDAP over loopback: tests with a bad certificate look into the directory as well.
        command = [program(name), "-x", "-H", self.start_tls_url, "-D", self.admin_dn, "-w", self.admin_password]
        return subprocess.run([*command, *arguments], input=text, text=True, capture_output=True, check=False)

    def _run(self, name: str, arguments: Sequence[str], text: str = "") -> str:
        done = self._call(name, arguments, text)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return done.stdout


def until(condition: object, seconds: float = 30.0, what: str = "it") -> None:
    """Wait until a call gives something true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@contextmanager
def running_slapd(directory: Path, **options: object) -> Iterator[Slapd]:
    """Run a slapd beneath a directory until the block ends."""
    server = Slapd(directory, **options)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()
