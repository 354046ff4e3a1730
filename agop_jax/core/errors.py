"""The one kind of error that is the user's to mend, and the sentence for a name nobody knows."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that says what was wanted, what was found and what to do.

    The program prints it without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A `UserError` that lists the known names and, if there is one, the closest."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
