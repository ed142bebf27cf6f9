"""The table of lowering rules: ONNX operator -> function. Each family of operators fills its part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ...compiler.ir import Value

Lowered = Value | Iterable[Value]


@dataclass(frozen=True)
class Rule:
    """``function(context, node)`` gives the node's outputs; a ``control`` rule gets the walker in the context's place,
    because it walks graphs itself."""

    function: Callable[[Any, Any], Lowered]
    control: bool = False

    def __call__(self, context: Any, node: Any) -> Lowered:
        return self.function(context, node)


RULES: dict[tuple[str, str], Rule] = {}

# What to do about operators that have no rule, where there is something better to say than a similar name.
HINTS: dict[str, str] = {
    "Bernoulli": "random operators need a generator: draw outside of the model",
    "Compress": "Where or Gather with fixed indices",
    "DeformConv": "Conv",
    "Det": "compute it outside of the model",
    "ImageDecoder": "decode the picture before the model",
    "Multinomial": "ArgMax, or draw outside of the model",
    "RandomNormal": "draw outside of the model and feed the numbers as an input",
    "RandomNormalLike": "draw outside of the model and feed the numbers as an input",
    "RandomUniform": "draw outside of the model and feed the numbers as an input",
    "RandomUniformLike": "draw outside of the model and feed the numbers as an input",
    "Unique": "TopK (a fixed number of values)",
    "Optional": "a plain tensor",
    "SequenceConstruct": "Concat, or several outputs",
    "SequenceMap": "Scan with a fixed trip count",
    "StringNormalizer": "do the work on text outside of the model",
    "StringSplit": "do the work on text outside of the model",
    "StringConcat": "do the work on text outside of the model",
    "RegexFullMatch": "do the work on text outside of the model",
    "TfIdfVectorizer": "do the work on text outside of the model",
}


def lowers(*operators: str, domain: str = "", control: bool = False) -> Callable[[Any], Any]:
    """Registers a function as the rule of one or more operators."""

    def register(function: Callable[[Any, Any], Lowered]) -> Callable[[Any, Any], Lowered]:
        for operator in operators:
            if (domain, operator) in RULES:
                raise RuntimeError(f"two rules for {operator}")
            RULES[domain, operator] = Rule(function, control)
        return function

    return register
