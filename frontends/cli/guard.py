"""From exceptions to exit codes: 0 done, 1 the user's error, 2 a bug or a missing tool, 130 interrupted.

Standard library only: the fallback on a device uses it too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import NervureError, printable

ISSUES = "open an issue with this line and the output of `nervure doctor`"


def guarded(call: Callable[[], Any], arguments: Sequence[str] = ()) -> int:
    """Runs ``call`` and returns the exit code. With ``--json`` among ``arguments`` an error is a JSON object too."""
    as_json = "--json" in arguments
    try:
        code = call()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except NervureError as error:
        return _report(
            str(error), error.exit_code, as_json, what=error.what, where=error.where, why=error.why, hint=error.hint
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader went away (`| head`): what is still buffered has nowhere to go, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("NERVURE_DEBUG") == "1":
            traceback.print_exc()
        lines = str(error).strip().splitlines()
        what = f"internal error: {type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
        text = f"{printable(what)}\n  do: {ISSUES}; NERVURE_DEBUG=1 shows where it happened"
        return _report(text, 2, as_json, what=what, hint=ISSUES)


def _report(text: str, code: int, as_json: bool, **fields: Any) -> int:
    bold, plain = ("\033[1;31m", "\033[0m") if _coloured() else ("", "")
    print(f"{bold}error:{plain} {text}", file=sys.stderr)
    if as_json:
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if v}
        print(json.dumps({"error": facts, "exit_code": code}))
    return code


def _coloured() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
