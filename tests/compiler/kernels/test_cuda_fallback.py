"""What has no kernel of its own for GPUs: CPU kernels with a slice of scratch for each thread; a list that only
shrinks."""

from __future__ import annotations

import models
import numpy as np
import pytest
from harness import check_region, region_of, sample
from nervure.compiler.kernels.templates import _cuda_fallback, plans, templates
from nervure.compiler.ops import OPS
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.frontends.onnx import load
from nervure.targets import get

MACHINE = get("cuda-sm80")
KEY = "thread_scratch"
LEFT = {  # operators with cases that run task by task; one that is served is to be taken off
    *("conv_grad_weight", "matmul", "topk"),
}


def test_the_list():
    own = {t.name for t in templates() if t.device}
    left = set()
    for name in sorted(OPS):
        for case in OPS[name].cases() if OPS[name].cases else ():
            region, _ = region_of(name, sample(case), case.attrs, machine=MACHINE)
            found = plans(region)
            if found and found[0].template not in own:
                left.add(name)
    print("task by task:", ", ".join(sorted(left)))
    assert left <= LEFT, f"no longer served: {sorted(left - LEFT)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_whole_models_have_kernels_of_their_own(name):
    own = {t.name for t in templates() if t.device}
    program, pool = plan_program([EntryGraph(load(models.model(name)[0], {}, {}))], MACHINE, Options())
    wanted = {p.kernel for e in program.entries for s in e.steps for p in s.phases}
    left = {k for k in wanted if pool.drafts[k].spec.template.split(".")[0] not in own}
    assert wanted and not left


def layer():
    """A recurrent layer of float64, whose kernel for CPUs has scratch for every worker and a task for every row."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((3, 7, 2), (2, 5, 2), (2, 5, 5))]
    return region_of("rnn", arrays, {"direction": "bidirectional", "activations": None, "clip": None}, machine=MACHINE)


def test_threads_have_scratch_of_their_own(monkeypatch):
    region, arrays = layer()
    for most in (_cuda_fallback._THREADS, 3):  # a thread for each task; three that take turns
        monkeypatch.setattr(_cuda_fallback, "_THREADS", most)
        for plan in plans(region):
            sliced = [d.spec.config[KEY] for d in plan.phases if KEY in d.spec.config]
            assert sliced and plan.worker_bytes == 0
            assert plan.shared_bytes >= max(s["threads"] * s["bytes"] for s in sliced)
            assert {s["threads"] for s in sliced} == {min(most, 14)}
        check_region(region, arrays)


def test_no_scratch_is_left_alone():
    region, _ = region_of("nonzero", [np.eye(4, dtype=np.float32)], {}, machine=MACHINE)
    assert all(KEY not in d.spec.config for p in plans(region) for d in p.phases)
