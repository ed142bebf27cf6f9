"""Columns without weights, for ``helium_dot``: their results are the same for all points.

Pruned and quantized networks have such channels (a quantizer gives a channel that is all but 0 only zeros). Neither
their weights nor their multipliers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.integers import rescale
from ..expr import Program, serialize
from ..spec import Region
from ._helium import ROWS
from ._helium_dot import GROUP, STEP
from ._numbers import Numbers
from .dot_depthwise import absorbed, used_inputs


@dataclass(frozen=True)
class Live:
    """The ``columns`` that are worked out, the last one repeated to whole groups; the ``program`` whose anchor is the
    requantized sum; the multipliers of all columns."""

    columns: np.ndarray
    program: Program
    multiplier: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether no column is left out."""
        return len(np.unique(self.columns)) == len(self.multiplier)

    def table(self, starts: np.ndarray, short: bool = False) -> np.ndarray:
        """Words: the row of what ``starts`` [all columns] alone become, if any is left out, then each group's starts,
        multipliers and places, those as bytes if ``short``."""
        attrs = self.program["rescale"]
        steps = rescale(starts, self.multiplier, attrs["zero_point"], attrs["low"], attrs["high"], attrs["to"])
        scales = np.asarray(self.multiplier[self.columns], np.float32).view(np.int32)
        places = self.columns.astype(np.uint8 if short else np.int32).view(np.int32)
        parts = [p.reshape(self.columns.size // GROUP, -1) for p in (starts[self.columns], scales, places)]
        row = np.zeros(0, np.int32) if self.whole else np.ascontiguousarray(steps).view(np.int32)
        return np.concatenate([row, np.concatenate(parts, axis=1).reshape(-1)]).astype(np.int32)

    def rows(self, region: Region) -> dict[str, str]:
        """The names of the instructions that requantize."""
        rows = {name: region.machine.instruction(kind) for name, kind in ROWS.items()}
        return {name: row.name for name, row in rows.items() if row is not None}

    def config(self, region: Region, walk: Any, numbers: Numbers) -> dict[str, Any]:
        """What the emitter is told beside what it is always told. How many groups there are is data."""
        steps = region.outputs[0].strides
        line, point = (0 if walk.axes[n] is None else steps[walk.axes[n]] for n in ("line", "point"))
        groups = numbers.put(self.columns.size // GROUP)
        return {
            "rows": self.rows(region),
            "columns": {"count": len(self.multiplier), "groups": groups},
            "to": {"outer": [steps[o["axis"]] for o in walk.outer], "line": line, "point": point},
        }


def live_columns(region: Region, weights: np.ndarray) -> Live | None:
    """For ``weights`` [..., columns]: all of them, where that saves no group. None where something else follows than
    the requantization to bytes."""
    columns, out = weights.shape[-1], region.outputs
    live = np.flatnonzero(weights.reshape(-1, columns).any(axis=0))
    live = live if live.size else np.arange(1)
    if -(-live.size // GROUP) == -(-columns // GROUP) or columns < STEP or columns % GROUP:
        live = np.arange(columns)
    if len(out) != 1 or region.op != "conv_integer" or min(out[0].strides) < 0:
        return None
    program, multiplier = absorbed(region, serialize(region), [])
    if multiplier is None or program["results"] != program["anchor"] or used_inputs(program):
        return None
    return Live(np.append(live, live[-1:].repeat(-live.size % GROUP)), program, multiplier)
