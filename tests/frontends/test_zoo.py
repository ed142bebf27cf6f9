"""The zoo: every row has its example, and is found by every name it has."""

from __future__ import annotations

import nervure as nv
import pytest
from nervure.frontends.zoo import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_an_example_that_says_what_it_is(row: Row) -> None:
    assert row.path.exists()
    assert 20 < len(row.line) < 120 and row.line.endswith((".", ":")), row.line
    assert f"python examples/{row.name}.py" in row.text
    assert all(nv.zoo[name] is row for name in (row.name, row.name.replace("_", " "), *row.like))


def test_names_are_distinct_and_every_other_is_refused_with_what_is_near() -> None:
    names = [name for row in ROWS for name in (row.name, *row.like)]
    assert len(names) == len(set(names)) and names == [name.lower() for name in names]
    assert nv.zoo["CNN"].name == "fashion_cnn"
    with pytest.raises(nv.NervureError, match="no 'fashon-cnn'") as error:
        nv.zoo["fashon-cnn"]
    assert "fashion_cnn" in str(error.value)


def test_printed_it_has_a_line_for_each() -> None:
    lines = str(nv.zoo).splitlines()
    assert len(lines) == len(nv.zoo) == len(ROWS) and all(len(line) < 180 for line in lines)
    assert [line.split()[0] for line in lines] == list(nv.zoo)
