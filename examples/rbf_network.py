"""A radial basis function network (Broomhead and Lowe 1988) foretells how diabetes goes on, learning in three ways.

    python examples/rbf_network.py [steps]

Eight Gaussians lie between ten measurements of a patient and the illness a year later. First their centres are found by
k-means, without looking at any answer; then the linear read-out is solved by recursive least squares; then `steps` of
Adam (100) train centres, widths and read-out together. In five-fold cross-validation the root mean square error on
patients held out is 53.9 after the second and 53.7 after the third, that of scikit-learn's kernel ridge on as many
centres 55.5. What comes out: rbf_network.png, the network seen along two measurements; rbf_network.so and its C header,
with all steps, so that a device can learn too.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import diabetes
from rich.progress import track
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

UNITS, FOLDS, TRAIN, TEST = 8, 5, 352, 88
BMI, FAT = 2, 8  # the two measurements that say most: the body mass index, and triglycerides in the blood
WAYS = ("kernel ridge", "k-means,\nleast squares", "trained\nend to end")

basis, readout = layers.RBF(UNITS), layers.LeastSquares(1, ridge=0.1)
network = nv.Sequential([nv.Input((10,)), basis, readout], name="rbf_network")


@nv.network
def find_centres(x: nv.Input(batch_shape=(TRAIN, 10))):
    """One iteration of k-means; the widths follow from the distances between the centres."""
    distance = basis.kmeans(x)
    return {"distance": distance, "widths": basis.spread(neighbors=2, scale=2.0)}


@nv.network
def solve(x: nv.Input(batch_shape=(1, 10)), y: nv.Input(batch_shape=(1, 1))):
    """Least squares for the read-out, one patient at a time."""
    return readout.learn(basis(x), y)


@nv.network
def train(x: nv.Input(batch_shape=(TRAIN, 10)), y: nv.Input(batch_shape=(TRAIN, 1)), rate: nv.Input(batch_shape=())):
    """One step of Adam for everything at once."""
    loss = nv.mean(nv.square(network(x) - y))
    nv.minimize(loss, network, "adam", rate)
    return loss


STEPS = [find_centres, solve, train]


def learn(session, x, y, steps):
    """The three ways one after another; a generator that stops at each of the two networks that they lead to."""
    session.reset()
    start = {"rbf.centers": x[:UNITS], "rbf.widths": np.ones(UNITS), "least_squares.weight": np.zeros((UNITS + 1, 1))}
    session.set_params({name: array.astype(np.float32) for name, array in start.items()})
    for _ in range(20):
        session.run(None, {"x": x}, entry="find_centres")
    for one, answer in zip(x, y, strict=True):
        session.run(None, {"x": one[None], "y": answer[None]}, entry="solve")
    yield
    for step in range(steps):
        session.run(None, {"x": x, "y": y, "rate": np.float32(0.02 * (1 - step / steps))}, entry="train")
    yield


def kernel_ridge(x, y, seed):
    """Ridge regression on RBF kernels at as many patients drawn at random, its settings chosen by cross-validation."""
    pipeline = make_pipeline(Nystroem(n_components=UNITS, random_state=seed), Ridge())
    settings = {"nystroem__gamma": [0.001, 0.003, 0.01, 0.03, 0.1], "ridge__alpha": [0.001, 0.01, 0.1, 1]}
    return GridSearchCV(pipeline, settings, cv=5, scoring="neg_mean_squared_error").fit(x, y[:, 0])


def picture(x, y, before, after, errors):
    """The network over two measurements (the others average), its centres before and after the last step; errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.4), width_ratios=(1.7, 1), layout="constrained")
    across, up = np.meshgrid(np.linspace(-2.5, 3.5, 80), np.linspace(-2.5, 3.5, 80))
    grid = np.zeros((80 * 80, 10), np.float32)
    grid[:, BMI], grid[:, FAT] = across.ravel(), up.ravel()
    limits, moved = {"vmin": -1.5, "vmax": 2, "cmap": "viridis"}, {"arrowstyle": "-|>", "color": "crimson", "lw": 2}
    left.contourf(across, up, network(grid).reshape(80, 80), 24, **limits, alpha=0.75)
    left.scatter(x[:, BMI], x[:, FAT], c=y[:, 0], s=22, edgecolors="white", linewidths=0.5, **limits)
    for a, b in zip(before, after, strict=True):
        left.annotate("", (b[BMI], b[FAT]), (a[BMI], a[FAT]), arrowprops=moved)
    left.set(title="Yellow: a worse course. Arrows: centres, k-means to end to end", xlim=(-2.5, 3.5), ylim=(-2.5, 3.5))
    left.set(xlabel="body mass index", ylabel="triglycerides")
    right.plot(WAYS, errors.T, "o-", color="#cccccc")
    right.plot(WAYS, errors.mean(axis=0), "o-", color="crimson", lw=3, ms=9)
    right.set(title="Error on held-out patients: folds, mean", xlim=(-0.3, 2.3))
    figure.savefig("rbf_network.png", dpi=100)


def main(steps=100):
    x, y = diabetes()
    scale, x, y = y.std(), (x - x.mean(axis=0)) / x.std(axis=0), ((y - y.mean()) / y.std())[:, None]
    model = nv.compile(network, steps=STEPS, dims={"batch": TEST})
    folds = np.random.default_rng(0).permutation(len(x))[: FOLDS * TEST].reshape(FOLDS, TEST)
    errors = np.zeros((FOLDS, len(WAYS)))
    for fold in track(range(FOLDS), "five folds"):
        test, rest = folds[fold], np.delete(folds, fold, axis=0).ravel()
        answers, centres = [kernel_ridge(x[rest], y[rest], fold).predict(x[test])[:, None]], []
        for _ in learn(model.session, x[rest], y[rest], steps):
            answers.append(model(x[test]))
            centres.append(model.session.params()["rbf.centers"])
        errors[fold] = [scale * np.sqrt(np.mean((answer - y[test]) ** 2)) for answer in answers]
    for way, error in zip(WAYS, errors.mean(axis=0), strict=True):
        print(f"{' '.join(way.split())}: error on held-out patients {error:.2f}")

    model.pull()
    picture(x, y, *centres, errors)
    path = nv.compile(network, steps=STEPS, dims={"batch": TEST}).save("rbf_network.so")
    by_python, by_c = nv.load(path)(x[test]), nv.run_in_c(path, x[test])
    assert np.allclose(by_python, by_c, atol=1e-6) and np.allclose(by_python, answers[-1], atol=1e-5)
    print(f"{path}: Python and a C program answer alike for {TEST} patients")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
