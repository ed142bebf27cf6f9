"""The streaming LSTM: its accuracy on spoken digits, and that it forgets one recording before the next."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


@pytest.mark.slow
@needs_data("spoken_digits_8k.npz")
def test_digits_are_named_while_they_are_heard(tmp_path: Path) -> None:
    """The example itself compares the stream with the whole sequences, and the C program with the stream, to 1e-5."""
    said = run("streaming_lstm", tmp_path, data=DATA)
    assert numbers(said, r"accuracy on held-out recordings: ([\d.]+)%")[0] >= 95
    assert numbers(said, r"whole sequence at once: ([\d.e-]+)")[0] < 1e-5
    assert "a C program hears the same, frame by frame" in said


def test_recordings_are_heard_alike_in_any_order(load: Load, tmp_path: Path) -> None:
    example = load("streaming_lstm")
    net = example.network(6)
    x = np.random.default_rng(0).standard_normal((3, 6, 40)).astype(np.float32)
    stream = nv.compile(nv.streaming(net), name="streaming_lstm")
    program = nv.load(path := stream.save(tmp_path / "streaming_lstm.so"))
    heard = [example.listen(program, recording) for recording in (x[2], x[0], x[1])]
    np.testing.assert_allclose([h[-1] for h in heard], net(x[[2, 0, 1]]), atol=1e-5)
    np.testing.assert_allclose(example.listen_in_c(path, x), [heard[1], heard[2], heard[0]], atol=1e-5)
