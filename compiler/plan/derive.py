"""Copies that are derived from params (packed weights, folded scales): made once by ``refresh``, not in every run.

Work whose inputs are params and constants alone moves out of an entry point that changes no param, into the steps of
the generated entry ``refresh``; its results lie in the ``derived`` block of a context. The runtime calls it before
an entry that reads it, whenever params have changed. States that change only together with params (running statistics)
count as params here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..kernels.spec import Arg, Draft, Plan
from ..program import Entry, Phase, Ref, Step, aligned

FIXED = ("const", "param", "derived")


@dataclass
class Derived:
    """The ``derived`` block of a program under construction, and the steps that fill it; equal work is done once."""

    nbytes: int = 0
    steps: list[Step] = field(default_factory=list)
    scratch: int = 0  # that the steps need while they run: shared, and of each worker
    worker_bytes: int = 0
    behind: int = 0  # where inputs end that a caller may have put into the arena before ``refresh`` runs
    _known: dict[tuple[object, ...], tuple[int, ...]] = field(default_factory=dict)

    def make(
        self,
        name: str,
        origin: tuple[str, ...],
        plan: Plan,
        drafts: Sequence[Draft],
        inputs: Sequence[Ref],
        sizes: Sequence[int],
        add: Callable[[np.ndarray], int],
    ) -> tuple[int, ...]:
        """Offsets of what ``drafts``, phases of ``plan``, make of ``inputs``: outputs, or parts of the shared scratch,
        of ``sizes`` bytes. The steps are added the first time; ``add`` takes a constant of the plan into
        the program's block."""
        key = (tuple((d.spec.name, d.args) for d in drafts), tuple(inputs), tuple(sizes))
        if key in self._known:
            return self._known[key]
        places = []
        for nbytes in sizes:
            places.append(self.nbytes)
            self.nbytes += aligned(nbytes)
        packs = all(d.prepares for d in drafts)  # no whole plan, whose packed operands stay in its scratch
        prepares = [d.args[-1].offset for d in drafts] if packs else []
        packed = [add(c) for c in plan.consts]

        def resolve(arg: Arg) -> Ref:
            if arg.kind == "in":
                return inputs[arg.index]
            if arg.kind == "out":
                return Ref("derived", places[arg.index] + arg.offset)
            if arg.kind == "const":
                return Ref("const", packed[arg.index] + arg.offset)
            if arg.kind == "shared":
                if arg.offset in prepares:
                    return Ref("derived", places[prepares.index(arg.offset)])
                return Ref("region", arg.offset, 0)
            return Ref("worker", arg.offset)

        own = Ref("region", aligned(plan.shared_bytes), 0)
        phases = [
            Phase(d.spec.name, tuple(resolve(a) for a in d.args), d.tasks or 1, d.tasks is not None, own)
            for d in drafts
        ]
        self.steps.append(Step(name=name, op="derive", phases=tuple(phases), origin=origin, detail=plan.detail))
        self.scratch = max(self.scratch, aligned(plan.shared_bytes) + plan.worker_bytes)
        self.worker_bytes = max(self.worker_bytes, aligned(plan.worker_bytes))
        self._known[key] = tuple(places)
        return tuple(places)

    def entry(self) -> Entry:
        """The entry point that fills the block. It runs between filling an input's slot and reading it, so that what it
        needs of the arena lies behind those slots."""
        uses = any(r.base in ("region", "worker") for s in self.steps for p in s.phases for r in p.args)

        def moved(ref: Ref) -> Ref:
            return replace(ref, offset=ref.offset + self.behind) if ref.base == "region" else ref

        steps = [
            replace(
                s,
                phases=tuple(
                    replace(p, args=tuple(map(moved, p.args)), scratch=moved(p.scratch) if uses else Ref("region"))
                    for p in s.phases
                ),
            )
            for s in self.steps
        ]
        return Entry(
            "refresh",
            (),
            (),
            tuple(steps),
            worker_bytes=self.worker_bytes,
            region_bytes=(self.behind + self.scratch if uses else 0,),
            reads_derived=False,
        )


def prepared(plan: Plan, fixed: Sequence[bool]) -> list[Draft]:
    """The leading phases that only prepare fixed operands, each in its own part of the shared scratch."""
    found: list[Draft] = []
    for draft in plan.phases[:-1]:
        if not draft.prepares or any(a.kind == "in" and not fixed[a.index] for a in draft.args):
            break
        found.append(draft)
    return found


def without(plan: Plan, drafts: Sequence[Draft], places: Sequence[int]) -> Plan:
    """The plan without phases that are done elsewhere: what they made lies at ``places`` of the ``derived`` block."""
    at = {d.args[-1].offset: place for d, place in zip(drafts, places, strict=True)}

    def moved(arg: Arg) -> Arg:
        there = arg.kind == "shared" and arg.offset in at
        return replace(arg, kind="derived", offset=at[arg.offset]) if there else arg

    rest = tuple(replace(d, args=tuple(moved(a) for a in d.args)) for d in plan.phases[len(drafts) :])
    shared = any(a.kind == "shared" for d in rest for a in d.args)
    return replace(plan, phases=rest, shared_bytes=plan.shared_bytes if shared else 0)
