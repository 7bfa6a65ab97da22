"""The errors' texts: they name the nearest known thing, and the command that mends it."""

import pytest

from polytask.errors import (
    DataError,
    MissingExtra,
    PolytaskError,
    RunError,
    UsageError,
    did_you_mean,
    need,
    unknown,
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tie", "ties"),
        ("pcgard", "pcgrad"),
        ("PCGrad", "pcgrad"),
        ("alignedmtl", "aligned-mtl"),
        ("sr p53", "SR-p53"),  # the known name keeps its own capitals
    ],
)
def test_the_nearest_name_is_suggested(typed, meant):
    known = ["ties", "pcgrad", "aligned-mtl", "SR-p53", "uniform"]
    assert did_you_mean(typed, known) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize("typed", ["", "zzzz", "q"])
def test_nothing_is_suggested_where_nothing_is_near(typed):
    assert did_you_mean(typed, ["ties", "pcgrad"]) == ""
    assert did_you_mean(typed, []) == ""


def test_unknown_names_what_came_and_where_to_look():
    error = unknown("merge method", "tie", ["ties"], "See `polytask methods merge`.")
    assert str(error) == (
        "Unknown merge method 'tie'. Did you mean 'ties'? See `polytask methods merge`."
    )
    far = unknown("suite", "xyz", ["digits2"], "See `polytask suites`.")
    assert str(far) == "Unknown suite 'xyz'. See `polytask suites`."


def test_need_returns_the_module_or_names_the_command():
    assert need("json.decoder", "tables", "anything").JSONDecoder
    with pytest.raises(MissingExtra) as caught:
        need("no_such_package.part", "tables", "Reading Parquet")
    assert str(caught.value) == (
        "Reading Parquet needs the package 'no_such_package', which is not installed. "
        "Install it with: pip install 'polytask[tables]'"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_every_error_can_be_caught_as_polytasks_and_as_pythons_own():
    for error, builtin in {
        UsageError: ValueError,
        DataError: ValueError,
        RunError: RuntimeError,
        MissingExtra: ImportError,
    }.items():
        assert issubclass(error, PolytaskError)
        assert issubclass(error, builtin)
