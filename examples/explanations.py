"""Six answers to why a network sees a cat, compiled into one library with it (Simonyan et al. 2014).

    python examples/explanations.py [steps of integrated gradients]

A photograph of a cat lies in coloured noise. An ImageNet MobileNet, read from ONNX, is asked which places speak for the
class that it finds; each explanation is an entry point of its own beside `infer`. The cat takes up 39 % of the picture
and has 50 % (saliency) to 85 % (occlusion) of the relevance. Sums hold: of integrated gradients within 1 % with 256
steps (the default), of layer-wise relevance propagation to six digits. What comes out: explanations.png, the picture
and six overlays; explanations.so and its C header.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import explain
from PIL import Image
from rich.progress import track

MOBILENET = Path(nv.__file__).parent / "examples" / "mobilenet"
PREDICTED = np.array([-1], np.int32)  # or the number of a class


def blurred(places, width):
    """A map [h, w], each place the mean of the square around it, smoothed twice."""
    for axis in (0, 1, 0, 1):
        padded = np.pad(places, [(width, width) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        places = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1, axis).mean(-1)
    return places


def scene(size=80):
    """The cat in coloured noise, [1, 128, 128, 3] in -1..1, and where it is, bool [128, 128]."""
    rng = np.random.default_rng(0)
    noise = np.stack([blurred(rng.standard_normal((128, 128)), 4) for _ in range(3)], axis=-1)
    picture, place = np.clip(noise * (0.2 / noise.std()), -1, 1), np.zeros((128, 128), bool)
    place[40 : 40 + size, 32 : 32 + size] = True
    cat = Image.open(MOBILENET / "cat.png").convert("RGB").resize((size, size))
    picture[place] = np.asarray(cat).reshape(-1, 3) / 127.5 - 1
    return picture[None].astype(np.float32), place


def draw(picture, maps, title, path):
    """The picture at the left, and each map over a gray one."""
    figure, axes = plt.subplot_mosaic([["photo", "photo", *list(maps)[:3]], ["photo", "photo", *list(maps)[3:]]])
    figure.set_size_inches(11, 4.9)
    shown = (picture[0] + 1) / 2
    axes["photo"].imshow(shown)
    axes["photo"].set_title(title, fontsize=13)
    for name, places in maps.items():
        strength = np.clip(places / np.quantile(places, 0.995), 0, 1)
        axes[name].imshow(shown.mean(-1), cmap="gray", vmin=-0.3, vmax=1.3)
        axes[name].imshow(strength, cmap="inferno", alpha=0.15 + 0.7 * strength)
        axes[name].set_title(name.replace("_", " "), fontsize=11)
    for axis in axes.values():
        axis.axis("off")
    figure.tight_layout(pad=0.6)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(steps=256):
    net = nv.load_network(MOBILENET / "mobilenet_v1_025_128.onnx")
    labels = (MOBILENET / "labels.txt").read_text().splitlines()
    picture, place = scene()
    whys = {
        "saliency": explain.saliency(net),
        "smooth_grad": explain.smooth_grad(net),
        "integrated_gradients": explain.integrated_gradients(net, steps=steps, at_once=min(steps, 32)),
        "lrp": explain.lrp(net),
        "grad_cam": explain.grad_cam(net),
        "occlusion": explain.occlusion(net, patch=24, stride=8),
    }
    model = nv.compile(net, entries=whys, name="explanations")
    path = model.save("explanations.so")
    session, name = nv.load(path), next(iter(net.inputs))
    feed = {name: picture, "target": PREDICTED}
    (scores,) = session.run(None, {name: picture})
    found = scores[0].argmax()
    print(f"MobileNet sees: {labels[found]} ({scores[0, found]:.0%})")

    print(f"the cat takes up {place.mean():.0%} of the picture")

    maps = {}
    for name in track(whys, "explaining"):
        relevance, _, score = session.run(None, feed, entry=name)
        positive, total = np.maximum(relevance[0].sum(-1), 0), relevance.sum()
        print(f"{name}: {positive[place].sum() / positive.sum():.0%} of the relevance is on it")
        if name in ("integrated_gradients", "lrp"):
            print(f"{name}: sums to {total:.3f} of {score.item():.3f} ({total / score.item() - 1:+.2%})")
        maps[name] = np.maximum(blurred(relevance[0].sum(-1), 2), 0)
    draw(picture, maps, f"“{labels[found]}”, {scores[0, found]:.0%}: why?", "explanations.png")

    relevance, *_ = session.run(None, feed, entry="lrp")
    in_c, *_ = nv.run_in_c(path, picture, PREDICTED, entry="lrp")
    np.testing.assert_allclose(in_c, relevance, rtol=1e-4, atol=1e-6)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB: a C program explains the same by layer-wise relevance")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
