"""``nv.choice``: a place in a network that a search may fill in one way or another (``nv.search``)."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .trace import fail

Answers = Callable[[str, Sequence[Any]], int]  # name and options -> which one
_answers: contextvars.ContextVar[Answers | None] = contextvars.ContextVar("answers", default=None)


def choice(name: str, options: Iterable[Any]) -> Any:
    """One of ``options`` (numbers, layers, functions, anything), which ``nv.search`` decides; the first one outside of
    a search. The same name is the same decision wherever it is asked for::

        @nv.network
        def net(x: nv.Input((784,))):
            for _ in range(nv.choice("layers", range(1, 4))):
                x = nv.layers.Dense(nv.choice("width", [16, 32, 64]), nv.choice("activation", ["relu", "tanh"]))(x)
            return nv.layers.Dense(10, activation="softmax")(x)
    """
    every = list(options)
    if not every:
        raise fail(f"nv.choice({name!r}) has no options")
    answers = _answers.get()
    return every[0 if answers is None else answers(name, every)]


@contextmanager
def answered(answers: Answers) -> Iterator[None]:
    """While it lasts, ``answers`` decides every ``choice``."""
    token = _answers.set(answers)
    try:
        yield
    finally:
        _answers.reset(token)
