"""The zoo: one row for each network and way of learning, with the example that shows it.

What an example is, says the first line of its docstring: it is written there and nowhere else.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NervureError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Row:
    """A network or a way of learning. ``learns``: supervised, unsupervised, ...; ``like``: other words for what the
    example shows; ``quick``: the argument of a shortened run; ``needs``: extras beside ``examples``; ``picture``: the
    file that its gallery shows."""

    name: str  # of the example, without .py
    learns: str
    like: tuple[str, ...] = ()
    quick: str = "1"
    needs: tuple[str, ...] = ()
    picture: str = ""

    @property
    def path(self) -> Path:
        """The example."""
        return EXAMPLES / f"{self.name}.py"

    @property
    def extras(self) -> tuple[str, ...]:
        """What must be installed of nervure's extras."""
        return ("examples", *self.needs)

    @property
    def text(self) -> str:
        """The example's docstring."""
        return ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""

    @property
    def line(self) -> str:
        """What it is, in one line."""
        return self.text.partition("\n")[0]


ROWS = (
    Row("perceptron", "supervised", ("neuron", "rosenblatt"), quick="20", picture="perceptron.png"),
    Row("mlp_xor", "supervised", ("keras", "sequential", "dense", "xor"), picture="mlp_xor.png"),
    Row("mlp_digits", "supervised", ("mlp", "digits"), picture="mlp_digits.png"),
    Row("fashion_cnn", "supervised", ("cnn", "convolution"), picture="fashion_cnn.png"),
    Row("spoken_digits", "supervised", ("gru", "ds-cnn", "sound"), picture="spoken_digits.png"),
    Row("streaming_lstm", "supervised", ("lstm", "rnn", "recurrent", "stream"), picture="streaming_lstm.png"),
    Row("anomaly_autoencoder", "unsupervised", ("autoencoder",), picture="anomaly_autoencoder.png"),
    Row("denoising_autoencoder", "unsupervised", ("denoising",), picture="denoising_autoencoder.png"),
    Row("variational_autoencoder", "unsupervised", ("vae", "variational"), picture="variational_autoencoder.png"),
    Row("gan", "adversarial", ("generator", "discriminator"), picture="gan.png"),
    Row("conditional_gan", "adversarial", ("cgan",), quick="3", picture="conditional_gan.png"),
    Row("transfer_learning", "supervised, frozen body", ("fine-tuning", "transfer"), picture="transfer_learning.png"),
    Row(
        "transformer_classifier",
        "supervised",
        ("transformer", "encoder", "attention"),
        picture="transformer_classifier.png",
    ),
    Row("vision_transformer", "supervised", ("vit", "patches"), picture="vision_transformer.png"),
    Row("masked_language_model", "self-supervised", ("bert", "mlm"), picture="masked_language_model.png"),
    Row("language_model", "self-supervised", ("gpt", "decoder", "generate"), picture="language_model.png"),
    Row("capsule_network", "supervised", ("capsnet", "capsule", "routing"), picture="capsule_network.png"),
    Row(
        "architecture_search",
        "searches",
        ("nas", "optuna", "search", "pareto"),
        quick="1",
        needs=("search",),
        picture="architecture_search.png",
    ),
    Row(
        "explanations",
        "explains",
        ("saliency", "integrated-gradients", "smoothgrad", "occlusion", "lrp", "grad-cam", "explain"),
        quick="4",
        picture="explanations.png",
    ),
    Row(
        "rbf_network",
        "unsupervised, then supervised",
        ("rbf", "radial-basis", "k-means", "least-squares"),
        quick="5",
        picture="rbf_network.png",
    ),
    Row(
        "self_organizing_map",
        "unsupervised, competitive",
        ("som", "kohonen", "u-matrix"),
        quick="2000",
        picture="self_organizing_map.png",
    ),
    Row(
        "deep_belief_network",
        "unsupervised, then supervised",
        ("rbm", "dbn", "boltzmann", "contrastive-divergence"),
        picture="deep_belief_network.png",
    ),
    Row("siamese", "metric learning", ("triplet", "contrastive", "verification"), "3", picture="siamese.png"),
    Row("few_shot", "episodes", ("prototypical", "one-shot", "enrolment"), "5", picture="few_shot.png"),
    Row("spiking_network", "supervised", ("snn", "spiking", "lif", "events"), picture="spiking_network.png"),
    Row("graph_network", "semi-supervised", ("gnn", "gcn", "graphsage", "gat"), "10", picture="graph_network.png"),
    Row("reinforce", "reinforcement", ("policy-gradient", "cartpole"), "3", picture="reinforce.png"),
    Row("dqn", "reinforcement", ("q-learning", "deep-q-network", "replay-buffer"), "2000", picture="dqn.png"),
    Row("ppo", "reinforcement", ("proximal-policy-optimization", "actor-critic"), "8", picture="ppo.png"),
    Row("federated", "federated", ("fedavg", "flower"), "2", ("federated",), "federated.png"),
    Row("continual_learning", "task after task", ("ewc", "replay", "forgetting"), picture="continual_learning.png"),
    Row("meta_learning", "episodes", ("reptile", "maml", "meta"), "3", picture="meta_learning.png"),
)


class Zoo(Mapping[str, Row]):
    """The rows by name; ``zoo["lstm"]`` also finds what has LSTMs. ``print(nv.zoo)`` lists them, a line each."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.name: row for row in rows}
        self._also = {name: row for row in rows for name in row.like}

    def __getitem__(self, name: str) -> Row:
        """The row of that name, or that has something of that kind; ``NervureError`` names the nearest ones."""
        wanted = name.lower().replace(" ", "-").replace("_", "-")
        found = self._rows.get(wanted.replace("-", "_")) or self._also.get(wanted)
        if found is None:
            near = difflib.get_close_matches(wanted, [*self._rows, *self._also], 5, 0.4)
            hint = f"it has {', '.join(near or self._rows)}"
            raise NervureError(f"the zoo has no {name!r}", hint=hint)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        rows = self._rows.values()
        wide, deep = (max(len(getattr(row, field)) for row in rows) for field in ("name", "learns"))
        return "\n".join(f"{row.name:<{wide}}  {row.learns:<{deep}}  {row.line}" for row in rows)


zoo = Zoo(ROWS)
