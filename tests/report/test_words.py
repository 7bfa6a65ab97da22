"""The verdict in words says what the numbers say, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polytask.report.sources import read_result
from polytask.report.words import listing, percent, verdict

Edit = Callable[[Path, Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def folder(tmp_path: Path, make_comparison: Callable[..., Path]) -> Path:
    return make_comparison(tmp_path / "run", methods=("equal", "dwa"), points=3, probes=2)


def say(folder: Path) -> str:
    """Return the verdict with plain spaces; in the page a number keeps its unit on its line."""
    return " ".join(verdict(read_result(folder))).replace("\u00a0", " ")


def set_delta(name: str, delta: float | None, ends: list[float] | None) -> Callable[..., None]:
    def change(raw: dict[str, Any]) -> None:
        raw["methods"][name] |= {"delta_m": delta, "delta_m_interval": ends}

    return change


def test_best_method_its_tasks_and_its_cost(folder: Path, edit_result: Edit) -> None:
    edit_result(folder, set_delta("equal", -1.0, [-2.0, -0.1]))
    edit_result(folder, set_delta("dwa", 1.24, [0.3, 2.2]))
    for task, word in {"left": "gained", "right": "lost", "sum": "lost", "ink": "gained"}.items():
        edit_result(
            folder,
            lambda raw, t=task, w=word: raw["methods"]["dwa"]["tasks"][t].update(verdict=w),
        )
    edit_result(
        folder,
        lambda raw: raw["methods"]["dwa"]["cost"].update(seconds_ratio=0.5, parameters_ratio=0.031),
    )
    assert say(folder) == (
        "dwa does best: a mean gain of +1.2 % [+0.3, +2.2] over 4 tasks and 3 seeds. "
        "Against their own single-task models, 2 gained (left and ink), 2 lost (right and sum) "
        "and none undecided. "
        "It took 0.50 × the training time and 0.031 × the parameters of the 4 single-task models "
        "together."
    )


def test_an_interval_over_zero_is_not_called_settled(folder: Path, edit_result: Edit) -> None:
    edit_result(folder, set_delta("equal", -1.0, [-2.0, -0.1]))
    edit_result(folder, set_delta("dwa", 1.2, [-0.3, 2.7]))
    assert "includes 0, so this is not settled" in say(folder)


def test_no_method_reaches_the_single_models(folder: Path, edit_result: Edit) -> None:
    edit_result(folder, set_delta("equal", -1.0, [-1.5, -0.5]))
    edit_result(folder, set_delta("dwa", -2.0, [-3.0, -1.0]))
    assert say(folder).startswith(
        "No method is ahead of the single-task models on average over 4 tasks and 3 seeds; "
        "equal comes nearest with −1.0 % [−1.5, −0.5]. "
    )


def test_one_seed_is_called_a_hint(tmp_path: Path, make_comparison: Callable[..., Path]) -> None:
    folder = make_comparison(tmp_path / "run", seeds=(0,), points=3, probes=2)
    assert "With a single seed there is no interval" in say(folder)


def test_nothing_to_name(folder: Path, edit_result: Edit) -> None:
    edit_result(folder, set_delta("equal", None, None))
    edit_result(folder, set_delta("dwa", None, None))
    assert say(folder) == "No method has a defined mean gain, so no winner can be named."
    edit_result(folder, lambda raw: [raw["methods"].pop(name) for name in ("equal", "dwa")])
    assert "Only the single-task models were trained" in say(folder)


def test_chance_among_many_tasks_and_left_out_tasks_are_said(
    folder: Path, edit_result: Edit
) -> None:
    edit_result(folder, set_delta("equal", -9.0, None))
    edit_result(
        folder,
        lambda raw: raw["methods"]["dwa"].update(
            counts={"gained": 3, "lost": 1, "gained_adjusted": 2, "lost_adjusted": 0},
            left_out=["ink"],
        ),
    )
    assert "Corrected for testing 4 tasks at once, 2 gained and no lost tasks remain." in say(
        folder
    )
    assert "The mean leaves out ink, whose gain is undefined." in say(folder)
    edit_result(
        folder,
        lambda raw: raw["methods"]["dwa"]["counts"].update(gained_adjusted=3, lost_adjusted=1),
    )
    assert "Corrected" not in say(folder)


def test_number_words() -> None:
    assert percent(-0.04) == "0.0\u00a0%"
    assert percent(-1.25) == "−1.2\u00a0%"
    assert percent(None) == "n/a"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_failed_methods_are_named(folder: Path, edit_result: Edit) -> None:
    edit_result(folder, lambda raw: raw.update(failed={"gls": "a loss is 0", "stch": "why"}))
    assert say(folder).endswith("Left out, because they stopped with an error: gls and stch.")
    edit_result(folder, lambda raw: [raw["methods"].pop(name) for name in ("equal", "dwa")])
    assert say(folder) == "Every method failed, so there is nothing to compare."


def test_the_best_of_many_is_told_from_luck(
    tmp_path: Path, make_comparison: Callable[..., Path], edit_result: Edit
) -> None:
    names = ("equal", "a", "b", "c", "d", "e")
    folder = make_comparison(tmp_path / "six", methods=names, points=3, probes=2)
    for name, delta in zip(names, (5.0, 4.5, 4.1, 3.9, 1.0, -2.0), strict=True):
        edit_result(folder, set_delta(name, delta, [delta - 1, delta + 1]))
    assert "The mean of 2 of the 5 other methods lies inside its interval or above" in say(folder)
    edit_result(folder, lambda raw: raw["methods"].pop("e"))
    assert "other methods" not in say(folder)
