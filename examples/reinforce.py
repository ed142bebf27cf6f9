"""REINFORCE (Williams 1992): a policy learns to balance a pole from the returns of whole episodes.

    python examples/reinforce.py [updates]

An action becomes more likely where more was earned after it than its state's value, which a second network learns
beside the policy (the baseline). One update of both is made from eight episodes; 80 updates (the default) reach 500 of
500 steps in the mean of 100 episodes, in Gymnasium's CartPole-v1 as in a C program that simulates the cart itself
(examples/c/cartpole.c). What comes out: reinforce.png; reinforce.so and its C header, the policy as a program.
"""

import sys

import cartpole  # beside this file
import gymnasium
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

ENVS, LONGEST, DISCOUNT = 8, 500, 0.99  # episodes at a time, their longest, what a later reward is worth

policy = nv.Sequential([nv.Input((4,)), layers.Dense(32, "tanh"), layers.Dense(2)], name="policy")
value = nv.Sequential([nv.Input((4,)), layers.Dense(32, "tanh"), layers.Dense(1)], name="value")


@nv.network
def act(state: nv.Input((4,), batch_size=ENVS)):
    """An action for each environment, drawn with the policy's probabilities."""
    return nv.random.categorical(policy(state))


@nv.network
def learn(
    state: nv.Input((4,)),
    action: nv.Input((), "int64"),
    gain: nv.Input(()),
    real: nv.Input(()),
    rate: nv.Input(batch_shape=()),
):
    """What went better than the value of its state makes more likely, what went worse less. ``real`` is 0 where an
    episode was over."""
    weight = real / nv.sum(real)
    better = gain - value(state)[:, 0]
    error = nv.sum(weight * nv.square(better))
    advantage = nv.stop_gradient(better / nv.sqrt(error))
    chosen = nv.take_along_axis(nv.log_softmax(policy(state)), action[:, None], 1)[:, 0]
    nv.minimize(-nv.sum(weight * advantage * chosen), policy, "adam", rate)
    nv.minimize(error, value, "adam", rate)
    return {"error": error}


def gains(reward):
    """What is earned from each step on, later rewards discounted: [steps, ...] -> [steps, ...]."""
    total = reward.copy()
    for step in reversed(range(len(reward) - 1)):
        total[step] += DISCOUNT * total[step + 1]
    return total


def main(updates=80, seed=0):
    model = nv.compile(act, steps=[learn], dims={"batch": ENVS * LONGEST}, name="reinforce")
    env = gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="vector_entry_point")

    # The step reads these arrays in place: nothing is allocated in the loop.
    feeds = {port.name: np.zeros(port.shape, port.dtype) for port in model.session.get_inputs("learn")}
    now = np.zeros((ENVS, 4), np.float32)
    choose, improve = model.session.binding({"state": now}), model.session.binding(feeds, entry="learn")
    state, action, gain, real = (a.reshape(LONGEST, ENVS, *a.shape[1:]) for a in list(feeds.values())[:4])
    curve = []
    for update in track(range(updates), "REINFORCE"):
        now[:], _ = env.reset(seed=1000 * seed + update)
        real[:], upright = 0, np.ones(ENVS, bool)
        for step in range(LONGEST):
            choose()
            state[step], action[step], real[step] = now, choose.outputs[0], upright
            now[:], _, fallen, _, _ = env.step(action[step])
            upright &= ~fallen
            if not upright.any():
                break
        gain[:] = (1 - DISCOUNT) * gains(real)  # the reward is 1 as long as the pole is upright
        feeds["rate"][...] = 0.03 * (1 - update / updates)
        improve()
        curve += real.sum(0).tolist()

    model.pull()
    path = nv.compile(policy).save("reinforce.so")
    surface = "probability of pushing to the right", lambda states: nv.softmax(policy(states))[:, 1]
    cartpole.finish(path, curve, surface, "REINFORCE learns to keep a pole upright")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
