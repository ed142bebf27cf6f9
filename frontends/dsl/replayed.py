"""Networks that are no function of their user's: a graph that is there already is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...compiler.types import TensorType
from .network import Network
from .trace import Trace, leaves


class ReplayedNetwork(Network):
    """A network with a graph behind it. Alone in a trace its tensors keep the graph's names, and so do its results."""

    outputs: list[str]
    _keep = False  # whether the trace at work is this network alone

    def _trace(
        self, types: Mapping[str, TensorType], values: Mapping[str, Any] | None = None, trace: Trace | None = None
    ) -> Trace:
        with (trace or Trace(self.name, self)).active() as trace:
            self._keep = True
            try:
                result = self.record(trace, types)
            finally:
                self._keep = False
            for name, tensor in zip(self.outputs, leaves(result), strict=True):
                trace.graph.output(tensor.value, name)
            trace.graph.prune()
        return trace
