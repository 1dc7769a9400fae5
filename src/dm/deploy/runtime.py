"""Makes the commands runnable by whom they must run for.

Processing stages never run as root, so an installation made by root needs an interpreter that another account can
reach. Often it cannot: interpreters live below a private home directory, virtual environments in private temporary
ones. Then the installation gets a private copy (of hard links where possible); nothing outside it is changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pwd
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from dm.common import accounts
from dm.common.errors import ConfigurationError, ProcessingError
from dm.common.hosting import reachable

DISTRIBUTION = "beamline-dm"
_LEAVE_OUT = {
    "test",
    "idlelib",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "pip",
    "setuptools",
}


def commands() -> dict[str, tuple[str, str]]:
    """Return the installed ``dm-*`` commands: name -> (module, function)."""
    found = {}
    for entry in importlib.metadata.distribution(DISTRIBUTION).entry_points:
        if entry.group == "console_scripts" and entry.name.startswith("dm-"):
            found[entry.name] = (entry.module, entry.attr)
    return dict(sorted(found.items()))


def account(name: str) -> pwd.struct_passwd:
    """Return an account that stages may run under. :raises ConfigurationError: unknown, or root."""
    try:
        return accounts.unprivileged(name, "stages")
    except ProcessingError as error:
        raise ConfigurationError(error.message) from None


def needs_copy(user: pwd.struct_passwd) -> bool:
    """Whether this account cannot use the running interpreter with everything installed in it."""
    return not all(reachable(path, user.pw_uid, {user.pw_gid}) for path in _places())


def _places() -> list[Path]:
    return [
        _interpreter(),
        Path(sys.executable),
        _standard_library(),
        _site_packages(),
        _source() / "common" / "errors.py",
    ]


def _interpreter() -> Path:
    return Path(sys.executable).resolve()


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _source() -> Path:
    spec = importlib.util.find_spec("dm")
    if spec is None or spec.origin is None:
        raise ConfigurationError("Package dm is not installed.")
    return Path(spec.origin).parent


def write_wrappers(directory: Path, runtime: Path | None) -> list[Path]:
    """Write one small shell program per command into ``directory`` and return those that changed.

    :param runtime: the private copy to use (see :func:`prepare`), or ``None`` for the running interpreter.
    """
    changed = []
    for name, (module, function) in commands().items():
        script = Path(sys.executable).parent / name
        if runtime is None and script.is_file():
            lines = ["#!/bin/sh", f'exec {shlex.quote(str(script))} "$@"']
        else:
            home = Path(sys.base_prefix) if runtime is None else runtime
            python = Path(sys.executable) if runtime is None else _python(runtime)
            code = f"import sys; sys.argv[0] = '{name}'; from {module} import {function} as run; sys.exit(run())"
            lines = [
                "#!/bin/sh",
                f"LD_LIBRARY_PATH={shlex.quote(str(home / 'lib'))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}",
                "export LD_LIBRARY_PATH",
                f'exec {shlex.quote(str(python))} -P -c {shlex.quote(code)} "$@"',
            ]
        text = "\n".join(lines) + "\n"
        target = directory / name
        if not target.exists() or target.read_text("utf-8") != text:
            temporary = target.with_name(f".{name}.{os.getpid()}")
            temporary.write_text(text, "utf-8")
            temporary.chmod(0o755)
            temporary.replace(target)
            changed.append(target)
    return changed


def _python(runtime: Path) -> Path:
    return runtime / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def prepare(runtime: Path, user: pwd.struct_passwd) -> bool:
    """Make (or renew) the private copy at ``runtime`` for an account; return whether anything was done."""
    mark = runtime / "made-from.json"
    wanted = _fingerprint(user)
    if mark.exists() and json.loads(mark.read_text("utf-8")) == wanted:
        return False
    partial = runtime.with_name(f".{runtime.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    library = _standard_library()
    packages = partial / "lib" / library.name / "site-packages"
    python = _python(partial)
    for directory in (python.parent, partial / "lib"):
        directory.mkdir(parents=True)
    _copy(_interpreter(), python)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        _copy(shared, partial / "lib" / shared.name)
    _copy_tree(library, partial / "lib" / library.name, _LEAVE_OUT)
    _packages(packages, user)
    mark = partial / mark.name
    mark.write_text(json.dumps(wanted), "utf-8")
    for directory in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)
    shutil.rmtree(runtime, ignore_errors=True)
    partial.rename(runtime)
    return True


def _packages(target: Path, user: pwd.struct_passwd) -> None:
    """Give the copy the installed packages: where they are if the account can read them there, else copied too."""
    original, source = _site_packages(), _source()
    target.mkdir(parents=True)
    if reachable(original, user.pw_uid, {user.pw_gid}):
        # addsitedir rather than a plain path: the packages' own .pth files are wanted as well
        (target / "dm-runtime.pth").write_text(f"import site; site.addsitedir({str(original)!r})\n", "utf-8")
    else:
        target.rmdir()
        _copy_tree(original, target, _LEAVE_OUT)
    if not source.is_relative_to(original) and not reachable(source / "common", user.pw_uid, {user.pw_gid}):
        for link in target.glob("__editable__*"):
            link.unlink()
        _copy_tree(source, target / source.name, set())


def _fingerprint(user: pwd.struct_passwd) -> dict[str, object]:
    source = _source()
    newest = max((path.stat().st_mtime for path in source.rglob("*.py")), default=0.0)
    version = importlib.metadata.version(DISTRIBUTION)
    return {
        "python": sys.version, "prefix": sys.prefix, "dm": version, "uid": user.pw_uid,
        "packages": _site_packages().stat().st_mtime, "source": newest,
    }  # fmt: skip


def _copy_tree(source: Path, target: Path, leave_out: set[str]) -> None:
    """Copy a tree with every directory open to all; names in ``leave_out`` are skipped at its top."""
    for folder, directories, files in os.walk(source):
        here = Path(folder)
        top = here == source
        if top:
            directories[:] = [name for name in directories if name not in leave_out and not name.startswith("config-")]
        directories[:] = [name for name in directories if name != "include"]  # C headers: thousands of files
        copied = target / here.relative_to(source)
        copied.mkdir(parents=True, exist_ok=True)
        for name in files:
            _copy(here / name, copied / name)


def _copy(source: Path, target: Path) -> None:
    """Link a file that everybody may read, else copy it and let everybody read the copy."""
    source = source.resolve()
    if not source.is_file():
        return
    mode = source.stat().st_mode
    if mode & 0o004:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without hard links
    shutil.copyfile(source, target)
    target.chmod(0o755 if mode & 0o100 else 0o644)
