"""Neurons that spike (leaky integrate-and-fire) read digits, and a device computes only where one did.

    python examples/spiking_network.py [epochs]

Pixels become spikes: by rate (the brighter, the more often) or by latency (each once, the brighter the earlier). The
steps of the neurons have no gradient: training takes that of a smooth function near by (Zenke and Ganguli 2018) and
goes back through all time steps. Of the digits that were held out, 97.8 % are read by rate and 96.9 % by latency. On a
device (examples/c/events.c) nothing is multiplied by a weight: an event is the number of a neuron that spiked, and adds
that neuron's row of weights, so that a digit costs 4,300 additions by latency and 20,900 by rate. What comes out:
spiking_network.png, the spikes of a digit; spiking_network.so and its C header, the network event by event.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import digits

STEPS, PIXELS, HIDDEN, CLASSES = 10, 64, 100, 10
CODES = {"rate": nv.spiking.rate, "latency": nv.spiking.latency}


def build(code):
    """The network as it learns from pixels, as it is watched on all time steps, and as a device runs it."""
    surrogate = nv.spiking.fast_sigmoid(slope=10)
    first, second = layers.Dense(HIDDEN, use_bias=False), layers.Dense(CLASSES, use_bias=False)
    hidden, output = layers.Leaky(0.95, spike_grad=surrogate), layers.Leaky(0.95, spike_grad=surrogate)
    to_hidden, to_output = (nv.Variable(np.zeros((1, n)), False, name=f"current_{n}") for n in (HIDDEN, CLASSES))

    @nv.network
    def watched(spikes: nv.Input((STEPS, PIXELS))):
        inner = hidden(first(spikes))
        return inner, output(second(inner))

    @nv.network
    def learning(x: nv.Input((PIXELS,))):
        return nv.sum(watched(code(x, STEPS))[1], axis=1)  # the class is that of the neuron that spikes most often

    @nv.network
    def pixel_event(index: nv.Input(batch_shape=(), dtype="int32")):
        nv.assign(to_hidden, to_hidden + first.weight[index])

    @nv.network
    def hidden_step():
        spikes = hidden.step(to_hidden)
        nv.assign(to_hidden, nv.zeros_like(to_hidden))
        return spikes

    @nv.network
    def hidden_event(index: nv.Input(batch_shape=(), dtype="int32")):
        nv.assign(to_output, to_output + second.weight[index])

    @nv.network
    def output_step():
        spikes = output.step(to_output)
        nv.assign(to_output, nv.zeros_like(to_output))
        return spikes

    return learning, watched, [pixel_event, hidden_step, hidden_event, output_step]


def events(spikes):
    """[pictures, steps, pixels] as examples/c/events.c reads it: numbers of pixels, -1 after a step, -2 at the end."""
    for picture in spikes:
        for step in picture:
            yield from (*np.flatnonzero(step), -1)
        yield -2


def draw(x, shown, additions):
    """A digit, the spikes that it becomes and causes, and what a digit costs."""
    figure, axes = plt.subplot_mosaic("xab;cab", figsize=(11, 6.4), width_ratios=(1, 1.5, 1.5), layout="constrained")
    axes["x"].imshow(x.reshape(8, 8), "gray_r")
    axes["x"].set(title="a digit that was held out", xticks=[], yticks=[])
    bars = axes["c"].bar(list(additions), list(additions.values()), color=["0.8", "tab:orange", "tab:blue"])
    axes["c"].bar_label(bars, fmt="{:,.0f}")
    axes["c"].set(title="additions for a digit", yticks=[], frame_on=False)
    for axis, (name, spikes) in zip("ab", shown.items(), strict=True):
        for layer, base, apart, colour in zip(spikes, (0, 72, 182), (1, 1, 3), ("0.3", "C0", "C3"), strict=True):
            step, neuron = np.nonzero(layer)
            axes[axis].scatter(step, base + apart * neuron, 16 * apart**1.5, colour, marker="|")
        axes[axis].set(title=f"{name} code", xlabel="time step", xticks=range(STEPS), ylim=(-3, 214), frame_on=False)
        axes[axis].set_yticks([32, 122, 195], ["64 pixels", "100 hidden\nneurons", "10 output\nneurons"])
    figure.savefig("spiking_network.png", dpi=100)


def main(epochs=20):
    (x, y), (x_test, y_test) = ((a.reshape(-1, PIXELS), b) for a, b in digits())
    shown, additions = {}, {"all steps": STEPS * HIDDEN * (PIXELS + CLASSES)}
    for name, code in CODES.items():
        print(f"{name} code")
        learning, watched, device = build(code)
        rate = nv.schedules.CosineDecay(0.005, decay_steps=epochs * -(-len(x) // 32))
        loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
        learning.compile(optimizer=nv.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
        learning.fit(x, y, 32, epochs)

        library = nv.compile(watched, entries=device, name="spiking_network").save("spiking_network.so")
        spikes, session = code(x_test, STEPS), nv.load(library)
        watching = [session(one[None]) for one in spikes]  # Python: all time steps at once
        counts = np.concatenate([output.sum(axis=1) for _, output in watching])
        shown[name] = [spikes[0], *(layer[0] for layer in watching[0])]

        program = nv.build_c(Path(__file__).parent / "c" / "events.c", library)  # C: event by event
        stream = np.fromiter(events(spikes), np.int32).tobytes()
        said = subprocess.run(program, input=stream, capture_output=True, check=True).stdout
        in_c = np.array(said.split(), int).reshape(len(x_test), -1)
        accuracy, same = (in_c[:, :10].argmax(axis=1) == y_test).mean(), (in_c[:, :10] == counts).all(axis=1).mean()
        pixels, neurons, additions[name] = in_c[:, 10:].mean(axis=0)
        print(f"  accuracy on held-out digits: {accuracy:.1%}")
        print(f"  spikes a digit: {pixels:.1f} of pixels, {neurons:.1f} of hidden neurons")
        print(f"  additions a digit: {additions[name]:,.0f}; products at all steps: {additions['all steps']:,}")
        print(f"  C, event by event, spikes as Python does on all steps in {same:.1%} of the digits")
        if same < 0.99:  # sums in another order may meet a threshold once in a while
            raise SystemExit("C and Python disagree")
    draw(x_test[0], shown, additions)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
