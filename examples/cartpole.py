"""The pole on a cart of the examples of reinforcement learning: played in Python and in C, and drawn."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import nervure as nv
import numpy as np

SOURCE = Path(__file__).resolve().parent / "c" / "cartpole.c"


def play(program, episodes=100, seed=1000):
    """Lets a compiled policy play; how many steps (at most 500) the pole stays upright, for each episode."""
    env, state = gymnasium.make("CartPole-v1"), np.zeros((1, 4), np.float32)
    (scores,) = program.bind([state])
    steps = np.zeros(episodes, int)
    for episode in range(episodes):
        state[0], ended = env.reset(seed=seed + episode)[0], False
        while not ended:
            program.invoke()
            state[0], _, fallen, late, _ = env.step(int(scores[0, 1] > scores[0, 0]))
            steps[episode] += 1
            ended = fallen or late
    return steps


def play_in_c(path, episodes=100, seed=1):
    """The same by a C program, which simulates the cart itself: the mean of all episodes, and the first one's states
    [steps, 4] and actions [steps]."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for end in (".so", ".h"):
            shutil.copy(Path(path).with_suffix(end), folder / f"policy{end}")
        command = nv.build_c(shutil.copy(SOURCE, folder), folder / "policy.so")
        said = subprocess.run([*command, str(episodes), str(seed)], capture_output=True, text=True, check=True).stdout
    *lines, mean = said.splitlines()
    first = np.array([line.split() for line in lines], float)
    return float(mean), first[:, :4].astype(np.float32), first[:, 4].astype(int)


def finish(path, curve, surface, title):
    """Plays a saved policy in Python and in C, checks that they agree, and draws curve, surface and an episode."""
    program = nv.load(path)
    steps = play(program)
    mean, states, actions = play_in_c(path)
    scores = np.concatenate([program(state[None]) for state in states])
    assert ((scores[:, 1] > scores[:, 0]) == actions).all(), "the C program acts otherwise than Python"
    print(f"100 episodes in Gymnasium: {steps.mean():.1f} of 500 steps (worst: {steps.min()})")
    print(
        f"100 episodes in C: {mean:.1f} of 500 steps; of the first one's {len(actions)} actions Python takes the same"
    )
    draw(Path(path).with_suffix(".png"), curve, surface, states, title)


def draw(path, curve, surface, states, title):
    """``curve``: the lengths of the episodes while learning; ``surface``: a label and a function of states [n, 4]."""
    figure, axes = plt.subplot_mosaic([["curve", "surface"], ["cart", "cart"]], figsize=(10, 6.2), layout="constrained")
    figure.suptitle(title)
    axes["curve"].plot(curve, ".", ms=3, alpha=0.35)
    axes["curve"].plot(np.convolve(np.pad(curve, 15, "edge"), np.ones(31) / 31, "valid"), lw=2)
    axes["curve"].set(xlabel="episode", ylabel="steps upright", ylim=(0, 515))
    label, function = surface
    angle, speed = np.meshgrid(np.linspace(-0.21, 0.21, 81), np.linspace(-2.5, 2.5, 81))
    grid = np.stack([0 * angle, 0 * angle, angle, speed], -1).reshape(-1, 4).astype(np.float32)
    shown = axes["surface"].contourf(np.degrees(angle), speed, function(grid).reshape(81, 81), 24, cmap="viridis")
    figure.colorbar(shown, label=label)
    axes["surface"].set(xlabel="angle of the pole (degrees)", ylabel="angular speed (rad/s)")
    draw_cart(axes["cart"], states)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"{path}: how it learned, what it thinks of angles and speeds, and the C program's first episode")


def draw_cart(axis, states, each=5, seconds=8):
    """The pole every few steps, where the cart is, as time goes on."""
    shown = states[: int(seconds / 0.02) : each]
    time = np.arange(len(shown)) * each * 0.02
    for t, (place, _, angle, _), shade in zip(time, shown, np.linspace(0.25, 1, len(shown)), strict=True):
        tip = (t + 0.3 * np.sin(5 * angle), place + 0.3 * np.cos(angle))
        axis.plot([t, tip[0]], [place, tip[1]], color="tab:orange", lw=1.6, alpha=shade)
    axis.plot(time, shown[:, 0], "s", color="black", ms=3)
    axis.set(xlabel="seconds (angles drawn five times as large)", ylabel="place of the cart (m)", xlim=(-0.1, seconds))
