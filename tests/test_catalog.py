"""The catalog: recipes as people write them, and every wrong one met with what to do."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from polytask import catalog, parsing
from polytask.balance import (
    MGDA,
    CAGrad,
    EveryN,
    FeatureLevel,
    IGBv1,
    PCGrad,
    SampledRows,
    UPGrad,
    Weighed,
)
from polytask.catalog import METHODS, ROOMS, Method, method
from polytask.errors import UsageError
from polytask.merge import TIES
from polytask.mix import Proportional, Temperature, Uniform, Unmixed
from polytask.parsing import Choice, choose, parse, split


@dataclass(frozen=True)
class Frozen:
    """A method made of settings alone."""

    temperature: float = 2.0
    cap: int | None = None
    often: bool = False
    unit: Literal["step", "epoch"] = "step"
    note: str = ""
    shares: tuple[float, ...] | None = None
    pairs: tuple[tuple[str, int], ...] = ()
    names: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()


class Trained(nn.Module):
    """A method with trained parts: its settings are arguments, not fields."""

    def __init__(self, tasks: int, start: float = 0.0) -> None:
        super().__init__()
        self.log_T = nn.Parameter(torch.full((tasks,), start))


ROWS = (
    *METHODS,
    Method("frozen", "mix", f"{__name__}:Frozen", "a frozen method", "this test"),
    Method("trained", "balance", f"{__name__}:Trained", "a trained method", "this test"),
)


@pytest.fixture(autouse=True)
def two_more_rows(monkeypatch):
    monkeypatch.setattr(catalog, "METHODS", ROWS)
    loaded = {row.name: globals()[row.target.split(":")[1]] for row in ROWS[-2:]}
    load = Method.load
    monkeypatch.setattr(Method, "load", lambda row: loaded.get(row.name) or load(row))


def test_rows_are_named_once_and_live_in_known_rooms():
    names = [row.name for row in METHODS]
    assert len(names) == len(set(names))
    assert {row.room for row in METHODS} <= set(ROOMS)
    for row in METHODS:
        assert row.summary
        assert row.source
        # "+", ":", "," and "=" have a meaning in recipes
        assert row.name.replace("-", "").isalnum()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("equal", ("hard", "equal", "proportional")),
        ("pcgrad", ("hard", "pcgrad", "proportional")),
        ("uniform", ("hard", "equal", "uniform")),
        ("hard+pcgrad", ("hard", "pcgrad", "proportional")),
        (" uniform + aligned-mtl ", ("hard", "aligned-mtl", "uniform")),
    ],
)
def test_a_recipe_takes_the_baseline_of_rooms_it_does_not_name(text, names):
    recipe = parse(text)
    assert recipe.text == text
    assert (recipe.share.method.name, recipe.balance.method.name, recipe.mix.method.name) == names


def test_settings_are_read_as_the_type_the_method_declares():
    recipe = parse("frozen:temperature=1e-1,cap=5,often=True,unit=epoch,note=1")
    assert recipe.mix.settings == (
        ("cap", 5),
        ("note", "1"),
        ("often", True),
        ("temperature", 0.1),
        ("unit", "epoch"),
    )
    assert recipe.mix.build() == Frozen(0.1, 5, True, "epoch", "1")
    assert parse("frozen:cap=none").mix.build() == Frozen()
    assert parse("frozen:widths=64/32").mix.build() == Frozen(widths=(64, 32))
    assert parse("frozen:widths=none").mix.build() == Frozen()
    assert parse("frozen:shares=none").mix.build() == Frozen(shares=None)
    assert parse("frozen:names=a/b c").mix.build() == Frozen(names=("a", "b c"))
    assert parse("frozen:names=none").mix.build() == Frozen()
    assert parse("frozen:shares=1/0.5/2e-1").mix.build() == Frozen(shares=(1.0, 0.5, 0.2))
    assert isinstance(parse("frozen:temperature=1").mix.build().temperature, float)


def test_settings_in_another_order_are_the_same_choice():
    assert parse("frozen:cap=5,often=true").mix == parse("frozen:often=true,cap=5").mix


def test_settings_of_a_module_with_trained_parts_are_those_with_a_default():
    choice = parse("trained:start=0.5+uniform").balance
    assert choice == Choice(method("trained"), (("start", 0.5),))
    built = choice.method.load()(tasks=3, **dict(choice.settings))
    assert built.log_T.tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(UsageError, match=r"Unknown setting of trained 'tasks'.* start"):
        parse("trained:tasks=3")


def test_a_real_method_takes_its_setting():
    recipe = parse("dwa:temperature=1+uniform")
    assert recipe.balance.settings == (("temperature", 1.0),)
    assert recipe.mix.method.name == "uniform"
    assert recipe.balance.build().temperature == 1.0


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("pcgrad+every-n:n=3", EveryN(PCGrad(seed=7), n=3)),
        ("mgda+feature-level+uniform", FeatureLevel(MGDA())),
        ("mgda+feature-level+every-n:n=2", EveryN(FeatureLevel(MGDA()), n=2)),
        ("upgrad+sampled-rows:fraction=0.5", SampledRows(UPGrad(), 0.5, seed=7)),
        ("upgrad+sampled-rows:seed=1", SampledRows(UPGrad(), seed=1)),
        ("igb-v1+cagrad", Weighed(CAGrad(), by=IGBv1())),
        ("igb-v1+hard+cagrad+every-n", Weighed(EveryN(CAGrad()), by=IGBv1())),
        ("pcgrad", PCGrad(seed=7)),
    ],
)
def test_wrappers_stand_around_the_method_innermost_first_and_seeds_reach_all(text, built):
    recipe = parse(text)
    assert recipe.build_balance(7) == built
    assert [row.name for row in recipe.named] == [p.partition(":")[0] for p in text.split("+")]


def test_what_wraps_a_mix_stands_around_it_and_leaves_the_balance_alone():
    recipe = parse("pcgrad+every-n+temperature:temperature=3+unmixed:order=drawn")
    assert recipe.build_mix(7) == Unmixed(Temperature(3.0), "drawn", seed=7)
    assert recipe.build_balance(7) == EveryN(PCGrad(seed=7))
    assert parse("unmixed").build_mix(0) == Unmixed(Proportional())
    assert parse("unmixed+uniform").build_mix(0) == Unmixed(Uniform())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pcgard", "Unknown method 'pcgard'. Did you mean 'pcgrad'? See `polytask methods`."),
        ("", "Unknown method ''. See `polytask methods`."),
        ("pcgrad+", "Unknown method ''. See `polytask methods`."),
        (
            "hard+hard",
            "Recipe 'hard+hard' names two methods of the room 'share'; give one.",
        ),
        (
            "pcgrad+equal",
            "Recipe 'pcgrad+equal': 'equal' weighs losses, so it comes before 'pcgrad'; write "
            "equal+pcgrad.",
        ),
        (
            "pcgrad+mgda",
            "Recipe 'pcgrad+mgda' names two methods of the room 'balance' that look at gradients; "
            "give one, or one of the losses before one of the gradients, such as igb-v1+cagrad.",
        ),
        (
            "dwa+igb-v1+cagrad",
            "Recipe 'dwa+igb-v1+cagrad' names two methods of the room 'balance' that look at "
            "losses; give one, or one of the losses before one of the gradients, such as "
            "igb-v1+cagrad.",
        ),
        (
            "igb-v1+cagrad+pcgrad",
            "Recipe 'igb-v1+cagrad+pcgrad' names two methods of the room 'balance'; give one.",
        ),
        (
            "every-n",
            "EveryN changes how gradients are compared, and Equal looks at losses alone: it costs "
            "one backward pass as it is. Use it without, or wrap a gradient method.",
        ),
        (
            "mgda+every-n+every-n",
            "Recipe 'mgda+every-n+every-n' names 'every-n' twice; give it once.",
        ),
        (
            "mgda+every-n+feature-level",
            "FeatureLevel cannot stand around EveryN; it goes around a method.",
        ),
        (
            "mgda+every-n:n=0",
            "EveryN: n is 0; give a whole number >= 1 (default 10).",
        ),
        (
            "frozen:temprature=1",
            "Unknown setting of frozen 'temprature'. Did you mean 'temperature'? "
            "Its settings: temperature, cap, often, unit, note, shares, names, widths.",
        ),
        (
            "frozen:temperature",
            "Setting 'temperature' of 'frozen' has no value; write key=value.",
        ),
        (
            "frozen:temperature=hot",
            "Setting 'temperature' of 'frozen' is 'hot'; give a number (default 2.0).",
        ),
        (
            "frozen:cap=1.5",
            "Setting 'cap' of 'frozen' is '1.5'; give a whole number or none (default None).",
        ),
        (
            "frozen:often=1",
            "Setting 'often' of 'frozen' is '1'; give true or false (default False).",
        ),
        (
            "frozen:unit=year",
            "Setting 'unit' of 'frozen' is 'year'; give step or epoch (default 'step').",
        ),
        (
            "frozen:shares=1/two",
            "Setting 'shares' of 'frozen' is '1/two'; give numbers parted by '/' or none "
            "(default None).",
        ),
        (
            "frozen:widths=64/1.5",
            "Setting 'widths' of 'frozen' is '64/1.5'; give whole numbers parted by '/' "
            "(default ()).",
        ),
        (
            "frozen:pairs=left",  # several of several: for Python alone
            "Unknown setting of frozen 'pairs'. "
            "Its settings: temperature, cap, often, unit, note, shares, names, widths.",
        ),
        (
            "frozen:cap=1,cap=2",
            "Setting 'cap' of 'frozen' is given twice; give it once.",
        ),
    ],
)
def test_a_wrong_recipe_is_answered_with_what_to_do(text, message):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_a_method_of_another_room_has_no_place_in_a_recipe(monkeypatch):
    merge = Method("ties", "merge", "json:loads", "trim, elect, mean", "Yadav et al. 2023")
    monkeypatch.setattr(catalog, "METHODS", (*ROWS, merge))
    with pytest.raises(UsageError, match=r"'ties' is of the room 'merge'.*share, balance, mix"):
        parse("hard+ties")


def test_a_method_of_any_room_can_be_chosen_with_its_settings():
    choice = choose("ties:density=0.1,weights=1/0.5", "merge")
    assert choice.build() == TIES(density=0.1, weights=(1.0, 0.5))
    with pytest.raises(UsageError, match=r"'dwa' is of the room 'balance'; give one of 'merge'"):
        choose("dwa", "merge")


@pytest.mark.parametrize("row", METHODS, ids=[row.name for row in METHODS])
def test_every_setting_of_every_method_can_be_written(row: Method):
    for name, parameter in parsing.settings_of(row).items():
        default = parameter.default
        text = "/".join(map(str, default)) or "none" if isinstance(default, tuple) else default
        written = f"{row.name}:{name}={text}"
        if row.wraps:
            recipe = parse(f"pcgrad+{written}")
            (choice,) = recipe.wrappers or recipe.mix_wrappers
        else:
            choice = choose(written, row.room)
        assert dict(choice.settings) == {name: parameter.default}


@pytest.mark.parametrize(
    ("text", "recipes"),
    [
        ("pcgrad", ("pcgrad",)),
        ("pcgrad, hard+dwa ,equal", ("pcgrad", "hard+dwa", "equal")),
        (
            "temperature:temperature=5,cap=1000,dwa:temperature=1+uniform,equal",
            ("temperature:temperature=5,cap=1000", "dwa:temperature=1+uniform", "equal"),
        ),
        (
            "temperature:temperature=5,cap=1000+dwa:temperature=1,pcgrad",
            ("temperature:temperature=5,cap=1000+dwa:temperature=1", "pcgrad"),
        ),
        ("pcgrad,,", ("pcgrad",)),
        ("", ()),
    ],
)
def test_a_list_of_recipes_keeps_settings_with_their_method(text, recipes):
    assert split(text) == recipes
    for recipe in recipes:
        parse(recipe)


def test_listing_loads_no_method(monkeypatch):
    monkeypatch.setattr(Method, "load", lambda row: pytest.fail(f"{row.name} was loaded"))
    assert [row.name for row in catalog.METHODS]
    parse("pcgrad+uniform")
