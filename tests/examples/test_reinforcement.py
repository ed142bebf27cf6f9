"""Reinforcement learning: what the examples compute by the way against plain numpy, the cart in C against Gymnasium's,
and that the policies keep the pole upright."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import Load, numbers

gymnasium = pytest.importorskip("gymnasium")


def test_gains_are_discounted_sums(load: Load) -> None:
    example = load("reinforce")
    reward = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    power = 0.99 ** np.arange(20)
    expected = [[(power[: 20 - t] * reward[t:, i]).sum() for i in range(3)] for t in range(20)]
    np.testing.assert_allclose(example.gains(reward), expected, rtol=1e-5)


def test_advantages_are_sums_of_surprises(load: Load) -> None:
    """Schulman et al. 2016, equation 16, with the sum cut where an episode ends."""
    example, rng = load("ppo"), np.random.default_rng(0)
    reward, values = rng.random((12, 2)).astype(np.float32), rng.random((13, 2)).astype(np.float32)
    ended = rng.random((12, 2)) < 0.3
    fallen = ended & (rng.random((12, 2)) < 0.5)
    found = example.advantages(reward, values, fallen, ended)
    for env in range(2):
        for t in range(12):
            total, factor = 0.0, 1.0
            for s in range(t, 12):
                after = 0 if fallen[s, env] else values[s + 1, env]
                total += factor * (reward[s, env] + 0.98 * after - values[s, env])
                factor *= 0.98 * 0.8
                if ended[s, env]:
                    break
            assert found[t, env] == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_what_is_seen_is_remembered_and_learned_from(load: Load) -> None:
    example = load("dqn")
    model = nv.compile(example.policy, steps=[example.remember, example.learn, example.renew_target])
    session, rng = model.session, np.random.default_rng(0)
    happened, rate = np.zeros(11, np.float32), np.zeros((), np.float32)
    keep, learn = session.binding([happened], entry="remember"), session.binding([rate], entry="learn")
    happened[:] = rng.random(11)
    happened[4], happened[6] = 1, 0
    keep()

    # All that is drawn is the one step that was seen.
    after = happened[None, 7:]
    best = example.target(after)[0, example.policy(after).argmax()]
    worth = 0.01 * happened[5] + 0.99 * best
    learn()
    assert learn.outputs[0] == pytest.approx((worth - example.policy(happened[None, :4])[0, 1]) ** 2, rel=1e-3)

    session.set_states({"seen": np.array(49_999, np.int32)})
    for number in range(3):  # over the end, and onwards from the beginning
        happened[:] = number
        keep()
    memory = session.states()["memory"]
    assert (memory[[49_999, 0, 1]] == np.arange(3)[:, None]).all()

    session.set_params({n: a + 1 for n, a in session.params().items() if n.startswith("policy")})
    session.binding(entry="renew_target")()
    held = session.params()
    assert all((held[f"target.{n}"] == held[f"policy.{n}"]).all() for n in example.policy.state_dict())


def test_the_policy_moves_no_further_than_the_clip_lets_it(load: Load) -> None:
    """Entropy and the value's error against numpy; actions that already are as much likelier as is allowed, and were
    better than the others, get no gradient: the policy stays where it is."""
    example, rng = load("ppo"), np.random.default_rng(0)
    model = nv.compile(example.act, steps=[example.learn], dims={"batch": 256})
    session, count = model.session, 256
    feeds = {port.name: np.zeros(port.shape, port.dtype) for port in session.get_inputs("learn")}
    feeds["state"][:] = 0.1 * rng.standard_normal((count, 4))
    feeds["real"][:], feeds["left"][...] = rng.random(count) < 0.9, 1
    logits = example.policy(feeds["state"])
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    better = feeds["state"][:, 2] > 0
    feeds["advantage"][:] = np.where(better, 1, -1)
    shift = np.where(better, -1, 1)  # the better ones by the factor e likelier than before, the worse ones less
    feeds["before"][:], feeds["gain"][:] = scores[:, 0] + shift, rng.random(count)
    learn = session.binding(feeds, entry="learn")
    learn()
    real = feeds["real"] / feeds["real"].sum()
    error = (real * (feeds["gain"] - example.value(feeds["state"])[:, 0]) ** 2).sum()
    entropy = -(real * (np.exp(scores) * scores).sum(axis=1)).sum()
    np.testing.assert_allclose([float(o) for o in learn.outputs], [error, entropy], rtol=1e-4)

    def gradient() -> float:  # Adam's first moment after one step is a tenth of it
        return float(np.abs(session.states()["learn/optimizer/policy.dense_1.weight/m"]).max()) * 10

    clipped = gradient()
    feeds["before"][:] = scores[:, 0]  # nothing has moved yet
    session.restore()
    session.reset()
    learn()
    assert 20 * clipped < gradient(), (clipped, gradient())  # of what is clipped the bonus on entropy is left


def test_the_cart_in_c_is_gymnasiums(load: Load, tmp_path: Path) -> None:
    cartpole, example = load("cartpole"), load("reinforce")
    path = nv.compile(example.policy).save(tmp_path / "policy.so")
    mean, states, actions = cartpole.play_in_c(path, episodes=20, seed=3)
    assert 8 <= mean <= 200 and len(states) == len(actions) and np.abs(states[0]).max() <= 0.05
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    env.unwrapped.state = tuple(states[0].astype(float))
    for step, action in enumerate(actions):
        after, _, fallen, _, _ = env.step(int(action))
        assert fallen == (step == len(actions) - 1)
        if not fallen:
            np.testing.assert_allclose(after, states[step + 1], atol=1e-5)
    assert (example.policy(states).argmax(axis=1) == actions).all()
    others = [cartpole.play_in_c(path, episodes=20, seed=seed)[0] for seed in (3, 4)]
    assert others[0] == mean != others[1]


@pytest.mark.slow
@pytest.mark.emulator
def test_the_policy_plays_the_same_on_arm(load: Load, tmp_path: Path) -> None:
    cartpole, example = load("cartpole"), load("reinforce")
    here, there = (nv.compile(example.policy, target=t).save(tmp_path / f"{t}.so") for t in ("host", "rpi4"))
    (mean, states, _), (other, theirs, _) = (cartpole.play_in_c(p, episodes=20) for p in (here, there))
    assert mean == other
    np.testing.assert_allclose(states, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["reinforce", "dqn", "ppo"])
def test_the_pole_stays_upright(
    name: str,
    seed: int,
    load: Load,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """475 of 500 steps in the mean of 100 episodes, in Gymnasium and in C."""
    monkeypatch.chdir(tmp_path)
    example = load(name)
    example.policy.seed = seed
    example.main(seed=seed)
    means = numbers(capsys.readouterr().out, r"100 episodes in \w+: ([\d.]+) of 500")
    assert len(means) == 2 and min(means) >= 475, means
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
