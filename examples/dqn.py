"""A deep Q-network (Mnih et al. 2015): memory, target network and learning live in one compiled program.

    python examples/dqn.py [steps]

Balancing a pole is learned from single steps: each is written into a memory in the program, and the network is trained
on some that are drawn there. What an action is worth is its reward and what the best action after it is worth, chosen
by the network and judged by an older copy of it (double Q-learning, van Hasselt et al. 2016). 50,000 steps (the
default) reach 500 of 500 steps in the mean of 100 episodes, in Gymnasium's CartPole-v1 as in a C program that simulates
the cart itself (examples/c/cartpole.c). What comes out: dqn.png; dqn.so and its C header, the policy as a program.
"""

import sys

import cartpole  # beside this file
import gymnasium
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

MEMORY, BATCH, DISCOUNT = 50_000, 128, 0.99  # steps remembered, drawn from them at a time; what a later reward is worth
FIRST, RENEWED = 1000, 200  # steps before learning begins, steps after which the target network is renewed


def network(name):
    """What each of the two actions is worth in a state: 1 if the pole stays upright for ever."""
    dense = [layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(2)]
    return nv.Sequential([nv.Input((4,)), *dense], name=name)


policy, target = network("policy"), network("target")
memory = nv.Variable(
    np.zeros((MEMORY, 11)), trainable=False, name="memory"
)  # state, action, reward, fallen, next state
seen = nv.Variable(np.zeros((), np.int32), trainable=False, name="seen")


@nv.network
def act(state: nv.Input((4,)), chance: nv.Input(batch_shape=())):
    """The best action; with some chance any."""
    tried = nv.random.categorical(nv.zeros((1, 2)))
    return nv.where(nv.random.uniform((1,)) < chance, tried, nv.argmax(policy(state), axis=1))


@nv.network
def remember(step: nv.Input(batch_shape=(11,))):
    """Writes a step over the one that was longest ago."""
    nv.assign(memory, nv.put(memory, seen % MEMORY, step))
    nv.assign(seen, seen + 1)


@nv.network
def learn(rate: nv.Input(batch_shape=())):
    """One step towards Bellman's equation (1957), on steps drawn from the memory."""
    filled = nv.cast(nv.minimum(seen, MEMORY), "float32")
    drawn = nv.take(memory, nv.cast(nv.random.uniform((BATCH,), 0, filled), "int32"), axis=0)
    state, action, reward, fallen, after = nv.split(drawn, (4, 5, 6, 7), axis=1)
    best = nv.take_along_axis(target(after), nv.argmax(policy(after), axis=1, keepdims=True), axis=1)
    worth = (1 - DISCOUNT) * reward + DISCOUNT * (1 - fallen) * best
    thought = nv.take_along_axis(policy(state), nv.cast(action, "int64"), axis=1)
    loss = nv.mean(nv.square(nv.stop_gradient(worth) - thought))
    nv.minimize(loss, policy, "adam", rate)
    return {"loss": loss}


@nv.network
def renew_target():
    """The target network becomes what the policy is now."""
    for old, new in zip(target.weights, policy.weights, strict=True):
        nv.assign(old, new)


def main(steps=50_000, seed=0):
    model = nv.compile(act, steps=[remember, learn, renew_target], name="dqn")
    session, env = model.session, gymnasium.make("CartPole-v1")
    now, happened = np.zeros((1, 4), np.float32), np.zeros(11, np.float32)
    chance, rate = np.zeros((), np.float32), np.zeros((), np.float32)
    choose, keep = session.binding({"state": now, "chance": chance}), session.binding([happened], entry="remember")
    improve, renew = session.binding([rate], entry="learn"), session.binding(entry="renew_target")
    now[:], curve, length = env.reset(seed=seed)[0], [], 0
    for step in track(range(steps), "DQN"):
        chance[...] = max(0.02, 1 - 5 * step / steps)
        choose()
        action = choose.outputs[0].item()
        after, reward, fallen, late, _ = env.step(action)
        happened[:] = *now[0], action, reward, fallen, *after
        keep()
        now[:], length = after, length + 1
        if fallen or late:
            now[:], _ = env.reset()
            curve, length = [*curve, length], 0
        if step % RENEWED == 0:
            renew()
        if step > FIRST:
            rate[...] = 0.001 * (1 - step / steps)
            improve()

    model.pull()
    path = nv.compile(policy).save("dqn.so")
    surface = "value of the best action", lambda states: policy(states).max(axis=1)
    cartpole.finish(path, curve, surface, "A deep Q-network learns to keep a pole upright")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
