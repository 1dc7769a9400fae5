"""The base of every ``dm-*`` command: same flags, same output, same exit statuses.

A command file is a function::

    @command("dm-get-experiment", api="dm.site.storage.api:ExperimentDsApi")
    @option("--experiment", required=True, help="Experiment name.")
    def main(api, experiment):
        \"\"\"Show one experiment.\"\"\"
        return api.getExperimentByName(experiment)

What it returns is printed: one record per line as ``key=value `` pairs, or as ``--display-format`` says. API objects
are made from the environment, their sessions kept below ``~/.dm`` so that only the first command logs in.

Exit status: 0; the error code of the :class:`DmException` whose sentence is on standard error; 1 for an operating
system error or a defect; 2 for wrong arguments; 130 after Ctrl-C; 141 when the reader of the output went away. With
``DM_DEBUG`` set, log lines and tracebacks go to standard error.

Shell completion is click's: ``eval "$(_DM_LIST_USERS_COMPLETE=bash_source dm-list-users)"``, or for all commands at
once the file :func:`dm.common.setupfile.completion_script` makes.
"""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import click

from dm.common import environment, plugins
from dm.common.errors import AuthenticationError, ConfigurationError, DmException
from dm.common.records import DmObject

__all__ = ["DmGroup", "argument", "command", "confirm", "key_values", "option", "print_records", "progress"]

DISTRIBUTION = "beamline-dm"
DEBUG = "DM_DEBUG"
FORMATS = ("text", "dict", "pprint", "json")
EXIT_DEFECT, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(32), 127, *range(128, 160)] if code != 9}
# what turns the direction of writing around, so that a name would be read as another one
_CONTROL |= {
    code: f"\\u{code:04x}" for code in [0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
}

F = TypeVar("F", bound=Callable[..., Any])
argument = click.argument
option = click.option


class _Outcome(click.Command):
    """DM's exit statuses and one-line errors, for commands and groups."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run and exit; entry points call this."""
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name or self.name, **extra)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except click.Abort:
            status = EXIT_INTERRUPTED
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> None:
        """Run the function; turn what goes wrong into one line and an exit status."""
        try:
            # file names are bytes: what is undecodable comes out as the bytes it was
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="surrogateescape")
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # the interpreter flushes once more at exit: into nothing, quietly
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_PIPE) from None
        except DmException as error:
            self._fail(str(error) or type(error).__name__, error.getErrorCode() or EXIT_DEFECT)
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            self._fail(f"{named}{error.strerror or error}.", EXIT_DEFECT)
        except (click.ClickException, click.Abort, click.exceptions.Exit, KeyboardInterrupt, EOFError):
            raise
        except Exception as error:  # the last resort of a program: a defect, said in one line
            self._fail(f"{type(error).__name__}: {error} (a defect; set {DEBUG}=1 for details).", EXIT_DEFECT)

    @staticmethod
    def _fail(sentence: str, status: int) -> NoReturn:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        click.echo(f"Error: {_one_line(sentence)}", err=True)
        raise click.exceptions.Exit(status)


class DmCommand(_Outcome):
    """One ``dm-*`` command."""


class DmGroup(_Outcome, click.Group):
    """A command with sub-commands, for administrators (``dm-config check``); add them with ``.command("name")``."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(
            name, help=help, params=[_version_option(name)], context_settings={"help_option_names": ["-h", "--help"]}
        )


def command(
    name: str, *, api: str | Sequence[str] = (), keyvalue_arguments: bool = False, display: bool = True
) -> Callable[[Callable[..., Any]], DmCommand]:
    """Make a function a ``dm-*`` command.

    :param name: e.g. ``dm-list-users``.
    :param api: ``module:Class`` of the API classes whose objects the function gets as its first arguments; imported
        only when the command runs, so that ``--help`` is quick.
    :param keyvalue_arguments: take free ``key:value`` words; the function gets them as the dict ``words``, values
        as text.
    :param display: offer the display options and print what the function returns: a record, a dict, a text, or an
        iterable of them.
    """
    references = [api] if isinstance(api, str) else list(api)

    def decorate(function: Callable[..., Any]) -> DmCommand:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            keys, form = _display(given) if display else (None, "text")
            if keyvalue_arguments:
                given["words"] = key_values(given["words"])
            with _debugging(name), _clients(references) as clients:
                result = function(*clients, **given)
                if display and result is not None:
                    print_records(result, keys, form)

        parameters = [*reversed(getattr(function, "__click_params__", []))]
        if keyvalue_arguments:
            parameters.append(click.Argument(["words"], nargs=-1, metavar="[KEY:VALUE]..."))
        if display:
            parameters.extend(_display_options())
        parameters.append(_version_option(name))
        return DmCommand(
            name,
            params=parameters,
            callback=run,
            help=function.__doc__,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )

    return decorate


def key_values(words: Iterable[str]) -> dict[str, str]:
    """Return ``key:value`` words as a dict; the value is everything after the first colon, as text.

    :raises click.UsageError: a word without a colon or key, or a key given twice with different values.
    """
    result: dict[str, str] = {}
    for word in words:
        key, colon, value = word.partition(":")
        if not colon or not key.strip():
            raise click.UsageError(f"Argument {word!r} is not of the form key:value.")
        if result.setdefault(key, value) != value:
            raise click.UsageError(f"Key {key!r} is given twice, as {result[key]!r} and {value!r}.")
    return result


def print_records(result: Any, keys: str | list[str] | None = None, form: str = "text") -> None:
    """Print what a command found: records and dicts one per line, texts as they are.

    :param result: a record, dict, text or number, or an iterable of them (printed as they come).
    :param keys: key list as in :meth:`DmObject.key_list`. :param form: one of :data:`FORMATS`.
    """
    single = isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable)
    terminal = sys.stdout.isatty()
    for item in [result] if single else result:
        if isinstance(item, Mapping):
            record = item if isinstance(item, DmObject) else DmObject(dict(item))
            line = record.getDisplayString(keys, form)
        else:
            line = item if isinstance(item, str) else str(item)
        if form == "text" and (terminal or not isinstance(item, str)):
            line = _one_line(line, controls=terminal)
        sys.stdout.write(f"{line}\n")


def say(sentence: str) -> None:
    """Say something beside the results, on standard error: one line, whatever names of files and people are in it."""
    click.echo(_one_line(sentence), err=True)


def confirm(question: str) -> bool:
    """Ask yes or no on the terminal; anything but a clear yes, also no terminal at all, is no."""
    try:
        answer = click.prompt(f"{question} [yes/no]", default="no", show_default=True, err=True)
    except click.Abort:
        click.echo(err=True)
        return False
    return str(answer).strip().lower() in ("y", "yes")


@contextmanager
def progress(description: str, total: int | None = None, *, size: bool = False) -> Iterator[Callable[..., None]]:
    """Show progress on standard error while it is a terminal; otherwise nothing.

    :param description: what is going on. :param total: how many, when known. :param size: the numbers are bytes.
    :yields: ``update(done, total=None)``, to be called with the count so far.
    """
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counter = DownloadColumn() if size else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    bars = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what a command prints into a pipe must not go to standard error
    )
    with bars:
        task = bars.add_task(description, total=total)
        yield lambda done, total=total: bars.update(task, completed=done, total=total)


def _display_options() -> list[click.Parameter]:
    return [
        click.Option(["--display-keys"], help="Keys to print: a comma list, DEFAULT, or ALL.", metavar="KEYS"),
        click.Option(
            ["--display-format"],
            type=click.Choice(FORMATS, case_sensitive=False),
            default="text",
            show_default=True,
            help="text: key=value pairs; dict and pprint: Python text; json: one JSON object per line.",
        ),
        click.Option(["-a", "--all", "all_keys"], is_flag=True, help="Print all keys (--display-keys ALL)."),
        click.Option(["-pp", "pretty"], is_flag=True, help="Print prettily (--display-format pprint)."),
    ]


def _display(given: dict[str, Any]) -> tuple[str | None, str]:
    keys, form = given.pop("display_keys"), given.pop("display_format")
    all_keys, pretty = given.pop("all_keys"), given.pop("pretty")
    return "ALL" if all_keys else keys, "pprint" if pretty else form


def _version_option(name: str) -> click.Parameter:
    def show(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            click.echo(f"{name} {importlib.metadata.version(DISTRIBUTION)}")
            context.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show, help="Show the version."
    )


@contextmanager
def _clients(references: Iterable[str]) -> Iterator[list[Any]]:
    """Make the API objects of a command, and close their connections afterwards."""
    username = _username()
    credentials = _Credentials(username)
    clients: list[Any] = []
    try:
        for reference in references:
            cls = plugins.resolve(reference, "API class")
            clients.append(cls(username, credentials=credentials, keep_session=True))
        yield clients
    finally:
        for client in clients:
            client.close()


def _username() -> str:
    """Return who runs the command: the login file's user, else ``DM_USERNAME``, else the account's name."""
    path = environment.login_file_path()
    if path is not None:
        return environment.read_login_file(path)[0]
    given = os.environ.get("DM_USERNAME")
    if given:
        return given
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigurationError(
            "The account has no name; set DM_USERNAME, or name a login file in DM_LOGIN_FILE (source dm.setup.sh)."
        ) from None


class _Credentials:
    """User name and password for logins: of the login file, else asked for on the terminal, once per command."""

    def __init__(self, username: str) -> None:
        self._username = username
        self._password: str | None = None

    def __call__(self) -> tuple[str, str]:
        path = environment.login_file_path()
        if path is not None:
            return environment.read_login_file(path)
        if self._password is None:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise AuthenticationError(
                    f"No password for user {self._username}; name a login file in {environment.LOGIN_FILE} "
                    "(source dm.setup.sh), or run the command on a terminal."
                )
            self._password = click.prompt(f"Password of {self._username}", hide_input=True, err=True)
        return self._username, self._password


@contextmanager
def _debugging(name: str) -> Iterator[None]:
    if not os.environ.get(DEBUG):
        yield
        return
    from dm.common import logs

    with logs.configure(name, level="DEBUG"):
        yield


def _one_line(text: str, controls: bool = True) -> str:
    """Show line breaks, and on terminals all control characters, as escapes: a record stays one harmless line."""
    text = text.replace("\n", "\\n").replace("\r", "\\r")
    return text.translate(_CONTROL) if controls else text
