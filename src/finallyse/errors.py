"""User errors, reported in one line.

Everything below the command line raises :class:`UserError` (or a subclass) with a message that names the file,
option or value and the remedy. Entry points wrap their work in :func:`one_line_errors`, which prints that message
without a traceback and exits with status 2. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """An error that the user can fix; the message is one line that says where it is and what to do."""


def nearest(name: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest known name, or the list of all known names where none is close."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line on stderr and exit with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
