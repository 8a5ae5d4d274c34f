"""Arguments of another type: one sentence with the argument, what was given and what is taken."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from tiny import model
from torch import Tensor

import latentcomm as lc
from latentcomm._core.typed import checked


@jaxtyped(typechecker=checked)
def takes(
    x: Float[Tensor, "row d_model"] | None = None,
    y: Float[Tensor, "row _"] | Int[Tensor, " row"] | None = None,
    *rest: int,
    names: Sequence[str] = (),
    table: Mapping[str, int | None] | None = None,
    kind: Literal["a", "b"] = "a",
    make: Callable[[], int] | None = None,
    **others: float,
) -> Float[Tensor, "row d_model"] | None:
    return x


@jaxtyped(typechecker=checked)
def gives_a_column(x: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
    return x[:, :1]


@jaxtyped(typechecker=checked)
def counts(n: int) -> Iterator[int]:
    yield from range(n)


ROWS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: takes(ROWS[0]), "x is float32 [4]; takes takes float tensor [row d_model]"),
        (lambda: takes(ROWS.int()), "x is int32 [3 4]; takes takes float tensor [row d_model]"),
        (lambda: takes(np.zeros((3, 4))), "x is float64 ndarray [3 4]; takes takes float tensor [row d_model]"),
        (
            lambda: takes(ROWS, ROWS[:2]),
            "y is float32 [2 4]; takes takes float tensor [row _] or int tensor [row] or None",
        ),
        (lambda: takes(None, None, 1, "two"), "rest[1] is 'two'; takes takes int"),
        (lambda: takes(names=[3]), "names[0] is 3; takes takes str"),
        (lambda: takes(names=3), "names is 3; takes takes a sequence of str"),
        (lambda: takes(table={"b": "x"}), "table['b'] is 'x'; takes takes int"),
        (lambda: takes(kind="c"), "kind is 'c'; takes takes 'a' or 'b'"),
        (lambda: takes(make=3), "make is 3; takes takes a function"),
        (lambda: takes(make=True, n="1"), "make is True; takes takes a function"),
        (lambda: takes(n="1"), "n is '1'; takes takes float"),
        (lambda: takes(names=[torch.nn.Linear]), "names[0] is the class Linear; takes takes str"),
        (lambda: gives_a_column(ROWS), "what gives_a_column returned is float32 [3 1]; gives_a_column returns"),
        (lambda: counts("3"), "n is '3'; counts takes int"),
    ],
)
def test_one_sentence_says_what_was_given_and_what_is_taken(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, TypeCheckError)  # what callers catch who know jaxtyping


def test_a_dimension_that_another_argument_fixed_is_named() -> None:
    with pytest.raises(TypeError, match=r"^target is float32 \[2 4\]; fit_ridge .*\[row d_receiver\] with row 3$"):
        lc.alignment.fit_ridge(ROWS, ROWS[:2])


def test_what_fits_passes_and_generators_stay_lazy() -> None:
    assert takes(ROWS, ROWS[:, 0].long(), 1, 2, names=("a",), table={"a": None}, make=int, n=0.5) is ROWS
    assert list(counts(2)) == [0, 1]


def test_an_error_inside_a_function_is_its_own() -> None:
    @jaxtyped(typechecker=checked)
    def outer(x: int) -> int:
        raise KeyError("inner")

    with pytest.raises(KeyError, match="inner"):
        outer(3)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda m: lc.compare(["silent"], m, m, None, n=3, seed=0), "channels[0] is 'silent'; compare takes Channel"),
        (lambda m: lc.generate(m, ["a"], max_new_tokens=3), "prompts is a list; generate takes Prompts or"),
        (lambda m: lc.capture(m, "a" * 10_000, [lc.Site(1)]), "prompts is 'aaa"),
        (lambda m: lc.encode(m, [m, m]), "texts[0] is a Model; encode takes str"),
        (lambda m: lc.Graft(lc.Site(1), [0], ROWS[:1], lc.fusion.Sum()), "position is a list; Graft takes int or"),
        (lambda m: lc.CompareSettings(seed="x"), "seed is 'x'; CompareSettings takes int"),
        (lambda m: lc.load_model(3), "name_or_path is 3; load_model takes str or"),
    ],
)
def test_the_public_functions_do_so_in_under_200_characters(call: Callable[[Any], Any], argument: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(model("llama"))
    assert str(caught.value).startswith(argument)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_module_of_the_package_is_checked_so(tmp_path: Path) -> None:
    script = "import latentcomm as lc\ntry: lc.Site('3')\nexcept TypeError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "layer is '3'; Site takes int"
