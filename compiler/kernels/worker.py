"""A compile worker: reads kernel specifications, writes object files. TVM lives here and nowhere else.

Protocol: one JSON object a line. Request ``{"template", "config", "name", "machine", "out"}``; answer ``{"ok": true}``
or ``{"ok": false, "error": text}``. A missing CPU feature aborts this process, which is why it is one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def build(template: str, config: dict[str, Any], name: str, machine: dict[str, Any]) -> tuple[Any, int | None]:
    """The PrimFunc of one kernel and the extent of its parallel loop (None when it has none)."""
    builder = written(template, config, name, machine)
    return builder.function(), builder.tasks


def written(template: str, config: dict[str, Any], name: str, machine: dict[str, Any]) -> Any:
    """The builder that a template's emitter has written to."""
    from .templates import emitter
    from .tir import Builder

    if machine["llvm"]["kind"] == "cuda":
        from .device import DeviceBuilder as Builder
    builder = Builder(name, machine)
    builder.slices = config.get("thread_scratch")
    emitter(template)(builder, config)
    return builder


def answer(request: dict[str, Any]) -> dict[str, Any]:
    from .lower import write_object, write_text

    if request.get("template") == "test.abort" and os.environ.get("NERVURE_TEST_ABORT"):
        os.abort()
    try:
        builder = written(request["template"], request["config"], request["name"], request["machine"])
        if builder.tasks != request["tasks"]:
            return {"ok": False, "error": f"the kernel has {builder.tasks} tasks, its plan says {request['tasks']}"}
        kind = request["machine"]["llvm"]["kind"]
        if kind == "cuda":
            from .device import text

            Path(request["out"]).write_text(json.dumps(text(builder, request["workers"])))
            return {"ok": True}
        function = builder.function()
        if kind == "c":
            write_text(function, Path(request["out"]))
        else:
            write_object([function], request["machine"]["llvm"], Path(request["out"]))
    except Exception as error:
        import traceback

        return {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {"ok": True}


def main() -> None:
    """Serves requests until standard input ends. Whatever else prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
