"""Next values of params and states, made in the place of the old ones: against the reference interpreter over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.compiler.plan.layout import lay_out
from nervure.compiler.types import TensorType
from nervure.runtime.session import load

F32 = "float32"
N = 24


class Step:
    """A graph over two square params, a state and an input, with short words for what the cases need."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.g = Graph("step")
        self.x = self.g.input("x", TensorType(F32, (N, N)))
        self.w1 = self.g.param(rng.standard_normal((N, N), np.float32), "w1")
        self.w2 = self.g.param(rng.standard_normal((N, N), np.float32), "w2")
        self.m = self.g.state(np.zeros((N, N), F32), "m")

    def op(self, name: str, *args: Value, **attrs: object) -> Value:
        return self.g.add(name, *args, **attrs)

    def turned(self, value: Value) -> Value:
        return self.op("transpose", value, perm=(1, 0))

    def rows(self, value: Value, start: int, stop: int, step: int = 1) -> Value:
        return self.op("slice", value, starts=(start, 0), stops=(stop, N), steps=(step, 1))

    def moved(self, value: Value, by: float = 0.125) -> Value:
        return self.op("sub", value, self.op("mul", self.x, self.g.const(np.float32(by), "rate")))

    def out(self, value: Value, name: str = "y") -> None:
        self.g.output(value, name)

    def total(self, value: Value, name: str = "y") -> None:
        self.out(self.op("reduce_sum", self.op("abs", value), axes=(0, 1)), name)


CASES: dict[str, Callable[[Step], None]] = {}


def case(write: Callable[[Step], None]) -> Callable[[Step], None]:
    CASES[write.__name__] = write
    return write


@case
def plain(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.total(s.x)


@case
def momentum(s: Step) -> None:
    """w', m' of one kernel."""
    m = s.op("add", s.op("mul", s.m, s.g.const(np.float32(0.9), "decay")), s.x)
    s.g.bind(s.m, m)
    s.g.bind(s.w1, s.op("sub", s.w1, s.op("mul", m, s.g.const(np.float32(0.1), "rate"))))
    s.total(s.x)


@case
def old_values_are_outputs(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.out(s.w1)


@case
def old_values_seen_through_a_view_are_outputs(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.out(s.turned(s.w1))


@case
def a_slice_of_old_values_is_an_output(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.out(s.rows(s.w1, 3, 9))


@case
def new_values_are_outputs(s: Step) -> None:
    new = s.moved(s.w1)
    s.g.bind(s.w1, new)
    s.out(new)


@case
def new_values_are_read_later_in_the_step(s: Step) -> None:
    new = s.moved(s.w1)
    s.g.bind(s.w1, new)
    s.out(s.op("matmul", new, s.x))


@case
def old_and_new_values_are_read_later(s: Step) -> None:
    new = s.moved(s.w1)
    s.g.bind(s.w1, new)
    s.out(s.op("matmul", new, s.w1))


@case
def an_old_reader_needs_the_new_value(s: Step) -> None:
    """The reader of the old value runs after the new one exists: it cannot be made in place."""
    new = s.moved(s.w1)
    s.g.bind(s.w1, new)
    s.out(s.op("add", s.op("matmul", s.op("matmul", new, s.x), s.turned(s.w1)), s.w1))


@case
def two_swap(s: Step) -> None:
    s.g.bind(s.w1, s.w2)
    s.g.bind(s.w2, s.w1)
    s.total(s.x)


@case
def two_swap_and_move(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w2))
    s.g.bind(s.w2, s.moved(s.w1, 0.5))
    s.total(s.x)


@case
def three_turn_around(s: Step) -> None:
    s.g.bind(s.w1, s.w2)
    s.g.bind(s.w2, s.m)
    s.g.bind(s.m, s.w1)
    s.total(s.x)


@case
def two_swap_transposed(s: Step) -> None:
    s.g.bind(s.w1, s.turned(s.w2))
    s.g.bind(s.w2, s.turned(s.w1))
    s.total(s.x)


@case
def bound_to_an_input(s: Step) -> None:
    s.g.bind(s.w1, s.x)
    s.total(s.w1)


@case
def bound_to_a_view_of_an_input(s: Step) -> None:
    s.g.bind(s.w1, s.turned(s.x))
    s.total(s.w1)


@case
def bound_to_another_that_moves(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.g.bind(s.w2, s.w1)
    s.total(s.x)


@case
def bound_to_a_view_of_another_that_moves(s: Step) -> None:
    s.g.bind(s.w1, s.moved(s.w1))
    s.g.bind(s.w2, s.turned(s.w1))
    s.total(s.x)


@case
def bound_to_the_new_value_of_another(s: Step) -> None:
    new = s.moved(s.w1)
    s.g.bind(s.w1, new)
    s.g.bind(s.w2, s.turned(new))
    s.total(s.x)


@case
def bound_to_itself(s: Step) -> None:
    s.g.bind(s.w1, s.w1)
    s.g.bind(s.w2, s.moved(s.w1))
    s.total(s.x)


@case
def bound_to_its_transpose(s: Step) -> None:
    s.g.bind(s.w1, s.turned(s.w1))
    s.total(s.w1)


@case
def moved_and_transposed(s: Step) -> None:
    s.g.bind(s.w1, s.op("add", s.turned(s.w1), s.x))
    s.total(s.w1)


@case
def bound_to_itself_backwards(s: Step) -> None:
    s.g.bind(s.w1, s.rows(s.w1, N - 1, -1, -1))
    s.total(s.x)


@case
def bound_to_itself_turned_by_rows(s: Step) -> None:
    """A buffer that moves on: concat of a slice of itself and of new rows, as streaming models have it."""
    s.g.bind(s.m, s.op("concat", s.rows(s.m, 4, N), s.rows(s.x, 0, 4), axis=0))
    s.g.bind(s.w1, s.op("concat", s.rows(s.w1, N - 3, N), s.rows(s.w1, 0, N - 3), axis=0))
    s.total(s.m)


@case
def bound_to_itself_times_itself(s: Step) -> None:
    s.g.bind(s.w1, s.op("mul", s.op("matmul", s.w1, s.w1), s.g.const(np.float32(0.1), "small")))
    s.total(s.x)


@case
def one_value_for_two(s: Step) -> None:
    new = s.op("add", s.moved(s.w1), s.w2)
    s.g.bind(s.w1, new)
    s.g.bind(s.w2, new)
    s.total(s.x)


@case
def one_value_for_two_and_an_output(s: Step) -> None:
    new = s.op("tanh", s.op("add", s.moved(s.w1), s.w2))
    s.g.bind(s.w1, new)
    s.g.bind(s.m, new)
    s.out(new)
    s.out(new, "again")


@case
def a_gradient_s_epilogue(s: Step) -> None:
    """The update hangs behind matmuls that read both weights."""
    hidden = s.op("tanh", s.op("matmul", s.x, s.w1))
    error = s.op("sub", s.op("matmul", hidden, s.w2), s.x)
    small = s.g.const(np.float32(1e-3), "rate")
    back = s.op("matmul", error, s.turned(s.w2))
    for w, gradient in (
        (s.w2, s.op("matmul", s.turned(hidden), error)),
        (s.w1, s.op("matmul", s.turned(s.x), back)),
    ):
        s.g.bind(w, s.op("sub", w, s.op("mul", gradient, small)))
    s.total(error)


@case
def clipped_by_the_norm_of_all(s: Step) -> None:
    """Every new value waits for a reduction over all old ones."""
    norm = s.op("reduce_sum", s.op("mul", s.w1, s.w1), axes=(0, 1))
    norm = s.op("add", norm, s.op("reduce_sum", s.op("mul", s.w2, s.w2), axes=(0, 1)))
    scale = s.op("div", s.g.const(np.float32(7), "most"), s.op("sqrt", norm))
    s.g.bind(s.w1, s.op("mul", s.moved(s.w1), scale))
    s.g.bind(s.w2, s.op("mul", s.moved(s.w2), scale))
    s.out(norm)


@case
def broadcast_of_a_row_of_itself(s: Step) -> None:
    s.g.bind(s.w1, s.op("add", s.w1, s.rows(s.w1, 2, 3)))
    s.total(s.x)


@case
def reduced_against_itself(s: Step) -> None:
    mean = s.op("reduce_mean", s.w1, axes=(1,), keepdims=True)
    s.g.bind(s.w1, s.op("sub", s.w1, mean))
    s.g.bind(s.m, s.op("softmax", s.op("add", s.m, s.x), axis=1))
    s.total(s.x)


@case
def read_by_a_matmul_and_by_the_update_behind_it(s: Step) -> None:
    """The decayed weight is the matmul's operand too: it cannot be part of what follows the matmul."""
    small = s.g.const(np.float32(0.3), "small")
    decayed = s.op("add", s.op("mul", s.w2, small), s.x)
    s.g.bind(s.w2, s.op("add", s.op("mul", decayed, small), s.op("tanh", s.op("matmul", s.w1, decayed))))
    s.total(s.x)


def written(s: Step, to: Value, rows: Value, *at: int, how: str = "none") -> Value:
    return s.op("scatter_nd", to, s.g.const(np.array(at, np.int32)[:, None], "at"), rows, reduction=how)


@case
def rows_are_written(s: Step) -> None:
    """A cache: what reads it afterwards sees the new rows."""
    cache = written(s, s.m, s.rows(s.x, 0, 2), 5, 2)
    s.g.bind(s.m, cache)
    s.out(s.op("matmul", cache, s.turned(s.x)))


@case
def rows_are_added_twice(s: Step) -> None:
    once = written(s, s.m, s.rows(s.x, 0, 3), 1, 1, 7, how="add")
    s.g.bind(s.m, written(s, once, s.rows(s.x, 3, 5), 1, N - 1))
    s.total(s.x)


@case
def rows_of_itself_are_written(s: Step) -> None:
    """Rows that the write itself would spoil, seen directly and behind a kernel."""
    s.g.bind(s.w1, written(s, s.w1, s.rows(s.w1, 0, 2), 1, 2))
    s.g.bind(s.m, written(s, s.m, s.op("tanh", s.op("add", s.rows(s.m, 3, 5), s.rows(s.x, 0, 2))), 4, 3))
    s.total(s.m)


@case
def rows_of_its_transpose_are_written(s: Step) -> None:
    s.g.bind(s.w1, written(s, s.turned(s.w1), s.rows(s.x, 0, 2), 6, 3))
    s.total(s.w1)


@case
def rows_of_another_are_written(s: Step) -> None:
    s.g.bind(s.w1, written(s, s.w2, s.rows(s.x, 0, 2), 6, 3))
    s.g.bind(s.w2, written(s, s.w2, s.rows(s.x, 2, 4), 6, 3))
    s.out(s.op("matmul", s.w1, s.w2))


def graph_of(name: str) -> Graph:
    step = Step()
    CASES[name](step)
    return step.g


def random_step(seed: int) -> Graph:
    """Some operations on old and new values in any order, some of the results bound."""
    rng = np.random.default_rng(seed)
    s = Step()
    pool = [s.x, s.w1, s.w2, s.m]
    small = s.g.const(np.float32(0.3), "small")
    for _ in range(rng.integers(4, 10)):
        a, b = (pool[i] for i in rng.integers(0, len(pool), 2))
        made = {
            0: lambda a, b: s.op("add", s.op("mul", a, small), b),
            1: lambda a, b: s.op("tanh", s.op("sub", a, b)),
            2: lambda a, b: s.op("tanh", s.op("matmul", a, b)),
            3: lambda a, b: s.turned(a),
            4: lambda a, b: s.op("concat", s.rows(a, 5, N), s.rows(b, 0, 5), axis=0),
            5: lambda a, b: s.op("mul", s.op("softmax", a, axis=1), b),
            6: lambda a, b: s.op("sub", a, s.op("reduce_mean", b, axes=(0,), keepdims=True)),
            7: lambda a, b: s.op("mul", s.rows(a, N - 1, -1, -1), small),
            8: lambda a, b: written(s, a, s.rows(b, 2, 5), 7, 0, 7),
        }[int(rng.integers(0, 9))](a, b)
        pool.append(made)
    for stored in (s.w1, s.w2, s.m):
        if rng.random() < 0.8:
            s.g.bind(stored, pool[rng.integers(0, len(pool))])
    s.out(pool[-1])
    s.total(pool[rng.integers(0, len(pool))], "z")
    s.g.prune()
    return s.g


RANDOM = [f"random_{seed}" for seed in range(24)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """All of them as entry points of one library, over the same params; and their graphs."""
    graphs = {name: graph_of(name) for name in sorted(CASES)}
    graphs |= {name: random_step(i) for i, name in enumerate(RANDOM)}
    path = tmp_path_factory.mktemp("updates") / "m.so"
    compile_entries([EntryGraph(g, name) for name, g in graphs.items()], targets.get("host"), path)
    return path, graphs


def check_steps(path, graph: Graph, name: str, threads: int, steps: int = 3) -> None:
    session, held = load(path, threads), {}
    wanted = {graph.node(n).names[0] for n in graph.inputs}
    for feed in inputs(steps):
        feed = {k: v for k, v in feed.items() if k in wanted}
        expected = interpret(graph, feed, held)
        found = session.run(None, feed, entry=name)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        kept = session.params() | session.states()
        for key, value in held.items():
            np.testing.assert_allclose(kept[key], value, rtol=1e-4, atol=1e-4, err_msg=key)


def inputs(steps: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    for _ in range(steps):
        yield {"x": rng.standard_normal((N, N), np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", [*sorted(CASES), *RANDOM])
def test_steps_are_those_of_the_interpreter(name, threads, compiled):
    path, graphs = compiled
    check_steps(path, graphs[name], name, threads)


@pytest.mark.parametrize("name", ["momentum", "two_swap_transposed", "bound_to_its_transpose"])
def test_steps_of_one_library(name, tmp_path):
    graph = graph_of(name)
    compile_entries([EntryGraph(graph, "train_step")], targets.get("host"), tmp_path / "m.so")
    check_steps(tmp_path / "m.so", graph, "train_step", 2)


def in_place(name: str) -> set[str]:
    layout = lay_out(fuse(canonicalize(graph_of(name))))
    return {layout.graph.tensor_name(Value(stored)) for stored in layout.updates.values()}


def test_what_is_made_in_place():
    assert in_place("plain") == {"w1"}
    assert in_place("momentum") == {"m", "w1"}
    assert in_place("a_gradient_s_epilogue") == {"w1", "w2"}
    assert in_place("clipped_by_the_norm_of_all") == {"w1", "w2"}


def test_what_is_not_made_in_place():
    assert in_place("an_old_reader_needs_the_new_value") == set()
    assert in_place("one_value_for_two") == set()
    assert len(in_place("two_swap_and_move")) <= 1


def test_rows_are_written_without_a_copy_of_the_rest(tmp_path):
    graph = graph_of("rows_are_written")
    made = compile_entries([EntryGraph(graph, "step")], targets.get("host"), tmp_path / "m.so")
    steps = made.entry("step").steps
    kernels = [k for s in steps for k in s["kernels"]]
    assert any("scatter_write" in k for k in kernels) and not any("copy" in k for k in kernels), kernels
    (written,) = (s for s in steps if "scatter" in s["op"])
    assert written["bytes"] <= 4 * 4 * N  # of the rows; the whole has N of them
    check_steps(made.path, graph, "step", 1)
