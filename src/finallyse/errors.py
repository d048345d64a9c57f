"""User errors, reported in one line.

Everything below the command line raises :class:`UserError` (or a subclass) with a message that names the file,
option or value and the remedy. Files that cannot be read or written raise the :class:`OSError` of the system, which
names the file. Entry points wrap their work in :func:`one_line_errors`, which prints either as one line without a
traceback and exits with status 2, or 75 if the same command may succeed later. Any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

INTERRUPTED = 130  # exit status of a process that Ctrl-C has ended, as shells say it
DISTRIBUTIONS = {"yaml": "pyyaml", "hydra": "hydra-core"}  # modules whose packages have other names
TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) of work that may succeed if it is started again as it is


class UserError(Exception):
    """An error that the user can fix; the message is one line that says where it is and what to do."""


class TemporaryError(UserError):
    """An error that may be gone by itself at the next attempt."""


def nearest(name: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest known name, or the list of all known names where none is close."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known)


def printable(text: str) -> str:
    """`text` as one line for a terminal, with the codes of all characters that are none, such as its commands."""
    shown = (c if c.isprintable() else " " if c in "\n\r\t" else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


@contextlib.contextmanager
def naming(path: str | Path, part: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError without a file, since an open file does not know its name, or of `part`, its draft."""
    try:
        yield
    except OSError as error:
        if error.strerror and (error.filename is None or str(error.filename) == str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def not_installed(error: ModuleNotFoundError) -> str | None:
    """One line that says how to install the package that is missing; None for modules that no part of this one needs.

    The extra that it belongs to, such as `metrics`, is read from the metadata of the installed package.
    """
    module = (error.name or "").partition(".")[0]
    package = DISTRIBUTIONS.get(module, module.replace("_", "-")).lower()
    import importlib.metadata  # slow, and rarely needed

    try:
        requirements = importlib.metadata.requires("finallyse") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        if re.match(r"[\w.-]+", requirement)[0].lower() == package != "finallyse":  # extras contain others
            extra = re.search(r"extra == [\"']([\w-]+)[\"']", requirement)
            what = f"'finallyse[{extra[1]}]'" if extra else package
            return f"{package} is not installed, which this needs: pip install {what}"
    return None


@contextlib.contextmanager
def one_line_errors(status: int = 2) -> Iterator[None]:
    """Print a :class:`UserError`, or an OSError of the system, as one line on stderr and exit with `status`.

    So is a package that is not installed, with the command that installs it.

    A :class:`TemporaryError` does not begin with `error: ` and exits with status 75, Ctrl-C exits with 130.
    """
    try:
        yield
    except BrokenPipeError:  # whatever reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the output that is still buffered
        sys.exit(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the process at once
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except TemporaryError as error:
        print(f"try again later: {printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(TRY_AGAIN)
    except UserError as error:
        line = str(error)
    except ModuleNotFoundError as error:
        line = not_installed(error)
        if line is None:
            raise
    except OSError as error:
        if error.strerror is None:  # raised by a library, not by the system
            raise
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        line = f"{' -> '.join(files) or 'a file'}: {error.strerror}"
    else:
        return
    print(f"error: {printable(line)}", file=sys.stderr, flush=True)
    sys.exit(status)
