"""Channels taken out of networks that are trained here; ``bench_pruning`` has the figures beside torch-pruning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.prune.layers import prepare
from nervure.compiler.prune.structure import find_structure

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The networks of the bench."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "path", [*sys.path])
    import pruning_nets  # type: ignore[import-not-found]

    yield pruning_nets


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "dscnn"])
def test_a_batch_of_any_size_changes_nothing(nets: ModuleType, name: str) -> None:
    """The same groups as with a batch of one."""
    net = nets.NETS[name].ours()
    found = [find_structure(prepare(graph)) for graph in (net.to_graph(symbolic=True), net.to_graph({"batch": 1}))]
    any_size, one = ([(g.name, g.kind, len(g.units), g.layers) for g in s.groups] for s in found)
    assert any_size == one and len(one) > 2


def test_batches_depend_on_the_epoch_alone(nets: ModuleType) -> None:
    """Two tools are fed the same: shuffled, moved, mirrored."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 1, 6, 5), np.uint8), np.arange(40, dtype=np.int32)
    data = nets.Data(x, y, x, y, 100.0, 50.0)
    runs = []
    for epoch in (3, 3, 4):
        batches = nets.Batches(data, 8, (1, 2), flip=True, first=1)
        batches.set_epoch(epoch)
        runs.append(list(batches))
    for (a, labels), (b, again) in zip(runs[0], runs[1], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(labels, again)
    assert sorted(np.concatenate([labels for _, labels in runs[0]])) == list(range(40))
    assert not np.array_equal(runs[0][0][1], runs[2][0][1])
    still = nets.Batches(data, 40, (0, 0), flip=False)
    ((pictures, labels),) = still
    np.testing.assert_array_equal(pictures, data.ready(x[labels]))


@pytest.mark.slow
def test_half_of_the_multiply_adds_of_a_keyword_spotter(nets: ModuleType, tmp_path: Path) -> None:
    """Spoken digits, DS-CNN: at most a point of accuracy, at most 0.60 of the time."""
    if not (nets.DATA / "spoken_digits_8k.npz").exists():
        pytest.skip("no spoken_digits_8k.npz")
    net = nets.NETS["dscnn"]
    data, model = net.data(), net.ours()
    nets.learn(net, model, data, 12, net.rate)
    made = nv.prune(
        model,
        tmp_path / "pruned.onnx",
        macs="0.5x",
        criterion="l2",
        data=(data.ready(data.x), data.y),
        test=(data.test, data.y_test),
        epochs=8,
        learning_rate=0.002,
        distill=True,
    )
    report = made.report
    print(report.accuracy, report.latency)
    assert report.totals["pruned"]["macs"] <= 0.51 * report.totals["dense"]["macs"]
    assert report.accuracy["dense"] > 0.95 and report.accuracy["drop"] <= 0.01
    assert report.latency["ratio"] <= 0.60
    again = nv.compile(str(made.path))
    right = np.mean([again(one[None]).argmax() for one in data.test] == data.y_test)
    assert right == pytest.approx(report.accuracy["tuned"], abs=0.005)
