"""Flower's parts around ``frontends/federated.py``: a strategy, a client app, and a grid of clients in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from .federated import Averaging, Client, Update, log, pack

_KEY, _SERIALIZED = "weights", "safetensors"
_FAILED = 0  # Flower's code for an error that it has no name for

__all__ = ["LocalGrid", "Strategy", "client_app"]


def record(blob: bytes) -> ArrayRecord:
    """Safetensors as Flower sends them: one array, its bytes as they are."""
    return ArrayRecord({_KEY: Array("uint8", (len(blob),), _SERIALIZED, blob)})


def content(arrays: ArrayRecord) -> bytes:
    """The safetensors of a record; an exception of some kind where there are none."""
    array = arrays[_KEY]
    if array.stype != _SERIALIZED:
        raise ValueError(f"serialized as {array.stype}")
    return bytes(array.data)


class Strategy(FedAvg):  # type: ignore[misc]
    """Flower's FedAvg, with an ``Averaging`` that checks and averages what comes back.

    ``strategy.start(grid, strategy.first(), num_rounds=...)`` runs it; the weights are in ``averaging.weights``.
    ``options`` are FedAvg's. Clients are not asked to evaluate.
    """

    def __init__(self, averaging: Averaging, **options: Any) -> None:
        super().__init__(**options)
        self.averaging = averaging

    def configure_evaluate(self, *_: Any) -> Iterable[Message]:
        """Nothing is asked."""
        return []

    def first(self) -> ArrayRecord:
        """The weights to start from."""
        return record(pack(self.averaging.weights))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next weights; refused updates are logged, the others averaged."""
        updates = []
        for reply in replies:
            client = reply.metadata.src_node_id
            if reply.has_error():
                log.warning("round %d: client %s failed: %s", server_round, client, reply.error.reason)
            else:
                updates.append(_update(client, reply.content))
        done = self.averaging.aggregate(updates)
        counts = {"accepted": len(done.accepted), "refused": len(done.refused)}
        return self.first(), MetricRecord(counts)


def _update(client: int, given: RecordDict) -> Update:
    """What a client's reply holds; what it lacks is empty, which is refused then."""
    try:
        blob = content(next(iter(given.array_records.values())))
        samples = next(iter(given.metric_records.values()))["num-examples"]
    except (StopIteration, KeyError, ValueError, TypeError):
        blob, samples = b"", 0
    return Update(client, blob, samples)


def client_app(client: Client | Callable[[Context], Client]) -> ClientApp:
    """A Flower app that trains a client: one that is there, or what a function makes of Flower's context (whose
    ``node_config`` says which part of the data is meant)."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        device = client(context) if callable(client) else client
        blob, samples, went = device.update(content(next(iter(message.content.array_records.values()))))
        metrics = MetricRecord({"num-examples": samples, **went})
        return Message(RecordDict({"arrays": record(blob), "metrics": metrics}), reply_to=message)

    return app


class LocalGrid(Grid):  # type: ignore[misc]
    """Clients in this process, one after another: Flower's strategies run on it as on a fleet. Node ``i + 1`` is app
    ``i``. One that fails answers with an error, as a device would."""

    def __init__(self, apps: Sequence[ClientApp]) -> None:
        for name in ("run_id", "task_id", "node_id"):  # whose messages these are; where a server runs, it has said so
            try:
                getattr(TaskIdentity, name)
            except RuntimeError:
                setattr(TaskIdentity, name, 0)
        self.apps = dict(enumerate(apps, 1))
        self._contexts = {
            node: Context(0, node, {"partition-id": node - 1, "num-partitions": len(apps)}, RecordDict(), {})
            for node in self.apps
        }
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count()
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"message {next(self._numbers)}")
            self._replies[names[-1]] = self._answer(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self.apps[node](message, self._contexts[node])
        except Exception as error:  # a device that fails must not stop the others
            return Message(Error(_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)
