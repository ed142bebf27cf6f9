"""Proximal policy optimization (Schulman et al. 2017): many small steps on the same experience, none of them too far.

    python examples/ppo.py [updates]

Eight environments run side by side; every 32 steps, policy and value network take twenty steps on what has happened.
A clipped objective keeps the policy from moving far beyond what it has experience of. 400 updates (the default) reach
500 of 500 steps in the mean of 100 episodes, in Gymnasium's CartPole-v1 as in a C program that simulates the cart
itself (examples/c/cartpole.c). What comes out: ppo.png; ppo.so and its C header, the policy as a program.
"""

import sys

import cartpole  # beside this file
import gymnasium
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

ENVS, STEPS, EPOCHS = 8, 32, 20  # environments side by side, steps in each before an update, passes over them
DISCOUNT, LAMBDA = 0.98, 0.8  # what a later reward is worth; how far ahead an advantage looks beyond one step

policy = nv.Sequential([nv.Input((4,)), layers.Dense(64, "tanh"), layers.Dense(2)], name="policy")
value = nv.Sequential([nv.Input((4,)), layers.Dense(64, "tanh"), layers.Dense(1)], name="value")


def log_probability(state, action):
    return nv.take_along_axis(nv.log_softmax(policy(state)), action[:, None], 1)[:, 0]


@nv.network
def act(state: nv.Input((4,), batch_size=ENVS)):
    """An action for each environment, drawn from the policy, its logarithmic probability, and the state's value."""
    action = nv.random.categorical(policy(state))
    return {"action": action, "log_probability": log_probability(state, action), "value": value(state)[:, 0]}


@nv.network
def learn(
    state: nv.Input((4,)),
    action: nv.Input((), "int64"),
    before: nv.Input(()),  # the logarithmic probability that the action had when it was taken
    advantage: nv.Input(()),
    gain: nv.Input(()),  # what the value is to become
    real: nv.Input(()),  # 0 where an environment only started anew
    left: nv.Input(batch_shape=()),  # how much of the training lies ahead, 1 to 0
):
    """One step up the clipped objective: nothing is won by moving a probability further than by the factor 1 + clip."""
    weight = real / nv.sum(real)
    centred = advantage - nv.sum(weight * advantage)
    scaled = centred / nv.sqrt(nv.sum(weight * nv.square(centred)) + 1e-8)
    ratio = nv.exp(log_probability(state, action) - before)
    clipped = nv.clip(ratio, 1 - 0.2 * left, 1 + 0.2 * left)
    gained = nv.sum(weight * nv.minimum(ratio * scaled, clipped * scaled))
    scores = nv.log_softmax(policy(state))
    entropy = -nv.sum(weight * nv.sum(nv.exp(scores) * scores, axis=1))
    error = nv.sum(weight * nv.square(gain - value(state)[:, 0]))
    loss = 0.5 * error - gained - 0.001 * entropy
    nv.minimize(loss, [policy, value], nv.optimizers.Adam(global_clipnorm=0.5), 0.001 * left)
    return {"error": error, "entropy": entropy}


def advantages(reward, values, fallen, ended):
    """How much better than expected it went from each step on (generalized advantage estimation, Schulman et al. 2016):
    [steps, environments] of rewards and of whether the pole fell or the episode ended, values [steps + 1, ...]."""
    found, ahead = np.zeros_like(reward), 0
    for step in reversed(range(len(reward))):
        surprise = reward[step] + DISCOUNT * values[step + 1] * ~fallen[step] - values[step]
        found[step] = ahead = surprise + DISCOUNT * LAMBDA * ~ended[step] * ahead
    return found


def main(updates=400, seed=0):
    model = nv.compile(act, steps=[learn], dims={"batch": ENVS * STEPS}, name="ppo")
    env = gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="vector_entry_point")

    # The step reads these arrays in place: nothing is allocated in the loop.
    feeds = {port.name: np.zeros(port.shape, port.dtype) for port in model.session.get_inputs("learn")}
    now = np.zeros((ENVS, 4), np.float32)
    now[:], _ = env.reset(seed=seed)
    choose, improve = model.session.binding({"state": now}), model.session.binding(feeds, entry="learn")
    *feed, left = feeds.values()
    state, action, before, advantage, gain, real = (a.reshape(STEPS, ENVS, *a.shape[1:]) for a in feed)
    reward, values = np.zeros((STEPS, ENVS), np.float32), np.zeros((STEPS + 1, ENVS), np.float32)
    fallen, ended = np.zeros((STEPS, ENVS), bool), np.zeros((STEPS, ENVS), bool)
    length, curve = np.zeros(ENVS), []
    for update in track(range(updates), "PPO"):
        for step in range(STEPS):
            choose()
            state[step], real[step] = now, ~ended[step - 1]  # where an episode has ended, this step starts a new one
            action[step], before[step], values[step] = choose.outputs
            now[:], reward[step], fallen[step], late, _ = env.step(action[step])
            ended[step] = fallen[step] | late
            length += real[step]
            curve += length[ended[step]].tolist()
            length[ended[step]] = 0
        choose()
        values[STEPS] = choose.outputs[2]
        advantage[:] = advantages(reward, values, fallen, ended)
        gain[:] = advantage + values[:-1]
        left[...] = 1 - update / updates
        for _ in range(EPOCHS):
            improve()

    model.pull()
    path = nv.compile(policy).save("ppo.so")
    cartpole.finish(path, curve, ("value", lambda states: value(states)[:, 0]), "PPO learns to keep a pole upright")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
