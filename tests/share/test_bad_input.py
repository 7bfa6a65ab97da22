"""What cannot work is refused when it is built, in words that say what to do."""

import pytest
import torch
from torch import nn

from polytask.errors import UsageError
from polytask.parsing import parse
from polytask.share import (
    APEM,
    CGC,
    DTRN,
    ESMM,
    PLE,
    STEM,
    DSelectK,
    Experts,
    Gates,
    HardSharing,
    HoME,
    MMoE,
    MMoEEx,
    TrunkModel,
)

from .conftest import INPUTS, WIDTH, Encoder, FieldEncoder, binary, rows


@pytest.mark.parametrize("build", [CGC.build, PLE.build])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shared": 0, "own": 2}, "2 tasks, 0 shared experts and 2 of each task's own"),
        ({"own": 0}, "2 tasks, 1 shared experts and 0 of each task's own"),
        ({"shared": -1}, "2 tasks, -1 shared experts"),
        ({"widths": ()}, "every width must be at least 1"),
    ],
)
def test_levels_need_experts_of_both_sorts(build, settings, told):
    with pytest.raises(UsageError, match=told):
        build(Encoder(), WIDTH, binary(2), **settings)


@pytest.mark.parametrize(("k", "experts"), [(5, 4), (0, 4), (3, 2)])
def test_no_more_is_selected_than_there_is(k, experts):
    with pytest.raises(UsageError, match=rf"k is {k}; give 1 to {experts}"):
        DSelectK.build(Encoder(), WIDTH, binary(2), experts=experts, k=k)


def test_a_category_without_tasks_and_a_task_without_category():
    with pytest.raises(UsageError, match="the category 'b' has none"):
        HoME.build(Encoder(), WIDTH, binary(2), {"a": ["t0", "t1"], "b": []})
    with pytest.raises(UsageError, match="its tasks are t0, but heads came for t0, t1"):
        HoME.build(Encoder(), WIDTH, binary(2), {"a": ["t0"]})


@pytest.mark.parametrize("build", [HardSharing.build, ESMM.build])
def test_an_encoder_of_another_width_is_refused_at_once(build):
    with pytest.raises(UsageError, match="reads features of width 7, but the encoder Encoder giv"):
        build(Encoder(), 7, binary(2))


@pytest.mark.parametrize("lone", [True, False])
def test_an_encoder_of_another_form_is_named_at_the_first_rows(lone):
    class Words(nn.Module):
        def forward(self, inputs):
            words = inputs[:, None].expand(-1, 3, -1)
            return words if lone else {"row": words}

    model = MMoE.build(Words(), INPUTS, binary(2))
    with pytest.raises(UsageError, match=r"'row' has 2 dimensions, but .* shape \(9, 3, 5\)"):
        model(rows().float())


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda e: MMoEEx(("a",), e, {"b": Experts(1, 6, (4,))}, {}), "Unknown task 'b'"),
        (lambda e: MMoEEx(("a", "c"), e, {}, {"ac": [0]}), "Unknown task 'ac'. Did you mean"),
        (lambda e: Gates(("a",), 6, 2, {"b": [0]}), "Unknown reader 'b'"),
        (lambda e: Gates(("a",), 6, 2, {"a": [2]}), r"closes experts \[2\], but there are 2"),
        (lambda e: Gates(("a",), 6, 2, {"a": [-1]}), r"closes experts \[-1\]"),
        (lambda e: Gates(("a", "a"), 6, 2), "'a' has a gate already"),
        (lambda e: Gates(("a",), 6, 2, {"a": [0, 1]}), "every expert is closed for 'a'"),
        (lambda e: MMoE(e, Gates(("a",), 6, 2)), "3 experts of 6 inputs need gates of as many"),
        (
            lambda e: TrunkModel(Encoder(), MMoE(e, Gates(("a",), 6, 3)), {"b": nn.Linear(4, 1)}),
            "its tasks are a, but heads came for b",
        ),
    ],
)
def test_parts_that_do_not_fit_one_another(build, told):
    with pytest.raises(UsageError, match=told):
        build(Experts(3, 6, (4,)))


@pytest.mark.parametrize("architecture", [APEM, DTRN])
def test_fields_that_nobody_tells_or_that_do_not_part_the_features(architecture):
    silent = nn.Linear(INPUTS, WIDTH)
    with pytest.raises(UsageError, match="Linear does not tell its `fields`"):
        architecture.build(silent, WIDTH, binary(2))
    with pytest.raises(UsageError, match="6 features do not part into 4 fields"):
        architecture.build(silent, WIDTH, binary(2), fields=4)
    model = architecture.build(silent, WIDTH, binary(2), fields=3)
    assert model(rows().float())["t0"].shape == (9, 1)
    with pytest.raises(UsageError, match="6 inputs in 4 fields"):
        architecture(("a",), 6, fields=4)
    with pytest.raises(UsageError, match="got 0 tasks"):
        architecture((), 6, fields=2)
    with pytest.raises(UsageError, match=r"reduction must be at least 1; got [23], 0"):
        architecture(("a",), 6, fields=2, reduction=0)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: APEM(("a",), 6, fields=2, patterns=1), "two patterns to select from"),
        (lambda: DTRN(("a",), 6, fields=2, sequences=[[0], [2]]), r"from 0 to 1.*got \[2\]"),
        (lambda: DTRN(("a",), 6, fields=2, sequences=[[]]), r"at least one; got \[\]"),
        (lambda: DTRN(("a",), 6, fields=2, sequences=[]), "at least one sequence"),
        (lambda: STEM((), nn.Embedding(3, 2), 2), "got 0 tasks"),
        (lambda: STEM(("a",), nn.Embedding(3, 2), 2, levels=0), "0 levels"),
        (lambda: STEM(("a",), nn.Embedding(3, 2), 2, own=0), "0 experts"),
        (lambda: STEM(("a",), nn.Embedding(3, 2), 2, shared=0), "0 experts of 4 inputs"),
        (lambda: STEM.build(Encoder(), WIDTH, binary(2)), "takes an encoder of fields"),
    ],
)
def test_sizes_that_cannot_work(build, told):
    with pytest.raises(UsageError, match=told):
        build()


def test_a_trunk_of_tables_without_their_index_says_what_it_lacks():
    trunk = STEM(("a",), nn.Embedding(9, 2), INPUTS)
    model = TrunkModel(nn.Identity(), trunk, {"a": nn.Linear(64, 1)})
    with pytest.raises(UsageError, match=r"reads the feature 'index' beside .* gives one tensor"):
        model(rows().float())
    with pytest.raises(UsageError, match=r"Unknown task 'b'"):
        model(rows().float(), tasks=["b"])


def test_a_recipe_says_what_an_architecture_stands_on():
    assert parse("mmoe").stands_on == "features"
    assert parse("mmoe:on=fields,experts=3+pcgrad").stands_on == "fields"
    assert parse("stem").stands_on == parse("apem").stands_on == "fields"
    assert parse("dtrn:on=features").stands_on == "features"
    with pytest.raises(UsageError, match="'field'; give features or fields or tokens"):
        parse("ple:on=field")
    encoder = FieldEncoder()
    model = MMoE.build(encoder, encoder.width, binary(2))
    assert torch.isfinite(model(rows().float())["t0"]).all()
