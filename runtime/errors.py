"""How a user's mistake ends: one clear line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A mistake the user can mend; names file, key or slide, what was found, what to do."""


class SaidElsewhere(UserError):
    """A mistake that another process of the same run names."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or its value, 2 on a UserError, 130 when interrupted."""
    script = Path(sys.argv[0]).name
    try:
        code = main()
    except SaidElsewhere:
        code = 2
    except UserError as error:
        # A loader process hands its error on below its own traceback: the last line says it.
        reason = str(error).strip().splitlines()[-1].removeprefix("runtime.errors.UserError: ")
        sys.stderr.write(f"{script}: error: {reason}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{script}: stopped; the same command continues\n")
        code = 130
    sys.exit(code or 0)
