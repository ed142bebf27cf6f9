"""The example of spiking neurons: its figures, its events, and its C program on other machines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import nervure as nv
import numpy as np
import pytest
from example_runs import EXAMPLES, Load, numbers, run


@pytest.mark.slow
def test_digits_are_read_by_both_codes(tmp_path: Path) -> None:
    """97.8 % by rate and 96.9 % by latency, with the same spikes in C, event by event, as on all steps at once."""
    pytest.importorskip("sklearn")
    said = run("spiking_network", tmp_path)
    by_rate, by_latency = numbers(said, r"accuracy on held-out digits: ([\d.]+)%")
    assert by_rate >= 97 and by_latency >= 96
    pixels, neurons = numbers(said, r"a digit: ([\d.]+) of pixels"), numbers(said, r"pixels, ([\d.]+) of hidden")
    additions = [float(f.replace(",", "")) for f in _words(said, "additions a digit: ", ";")]
    np.testing.assert_allclose(additions, 100 * np.array(pixels) + 10 * np.array(neurons), atol=6)
    assert additions[0] < 74000 / 3 and additions[1] < 74000 / 15


def _words(said: str, before: str, after: str) -> list[str]:
    return [part.partition(after)[0] for part in said.split(before)[1:]]


def test_events_are_numbers_of_pixels_step_by_step(load: Load) -> None:
    spikes = np.zeros((2, 3, 64))
    spikes[0, 0, [5, 9]] = spikes[0, 2, 63] = spikes[1, 1, 0] = 1
    assert list(load("spiking_network").events(spikes)) == [5, 9, -1, -1, 63, -1, -2, -1, 0, -1, -1, -2]


def _device(module: ModuleType) -> tuple[nv.Network, list[nv.Network]]:
    """Networks with weights that make neurons spike."""
    _, watched, device = module.build(nv.spiking.latency)
    watched(np.zeros((1, 10, 64), np.float32))
    for name, weight in watched.named_weights():
        if name.endswith("weight"):
            weight.assign(weight.numpy() * 4)
    return watched, device


@pytest.mark.emulator
def test_the_same_spikes_on_64_bit_arm(load: Load, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    module = load("spiking_network")
    watched, device = _device(module)
    spikes = nv.spiking.latency(np.random.default_rng(0).random((8, 64), np.float32), module.STEPS)
    library = nv.compile(device, "rpi4", name="spiking_network").save(tmp_path / "spiking_network.so")
    program = nv.build_c(EXAMPLES / "c" / "events.c", library)
    stream = np.fromiter(module.events(spikes), np.int32).tobytes()
    said = subprocess.run(program, input=stream, capture_output=True, check=True).stdout
    counts = np.array(said.split(), int).reshape(8, -1)
    hidden, output = watched(spikes)
    np.testing.assert_array_equal(counts[:, :10], output.sum(axis=1))
    np.testing.assert_array_equal(counts[:, 10], spikes.sum(axis=(1, 2)))
    np.testing.assert_array_equal(counts[:, 11], hidden.sum(axis=(1, 2)))
    assert counts[:, :12].min(axis=0)[10:].min() > 20


def test_it_fits_a_microcontroller(load: Load) -> None:
    """1.3 KB of RAM and 33 KB of flash on a Cortex-M4: weights are there once, membranes are states."""
    report = nv.compile(_device(load("spiking_network"))[1], "cortex-m4").report
    assert report.context_bytes < 1400
    assert report.weights_bytes + report.code_bytes < 35_000
