"""The experiments on mixing: their building blocks, and that page and claims are the tables'."""

from pathlib import Path

import pytest
import torch

from polytask.evaluate.claims import load, save

from .experiment import together

MIX = Path(__file__).parents[1] / "experiments" / "mix"
SCRIPTS = (
    "found", "sentences", "pictures", "skills", "order", "stages", "sorting", "alternating",
    "unmixed", "page",
)  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    with together(MIX, SCRIPTS) as scripts:
        yield scripts


def test_the_claims_follow_from_the_tables(scripts, tmp_path):
    (tmp_path / "mix").mkdir()
    save(tmp_path / "mix", scripts.page.PAGE.claims(scripts.page.PAGE.tables()))
    recorded = tuple(c for c in load(MIX.parent) if c.experiment == "mix")
    assert load(tmp_path) == recorded


def test_the_page_of_results_is_that_of_the_tables(scripts):
    text = scripts.page.PAGE.markdown(scripts.page.PAGE.tables())
    assert (MIX / "results.md").read_text() == text
    for section in text.split("## ")[1:]:
        grid = [line for line in section.splitlines() if line.startswith("|")]
        assert len(grid) >= 3
        assert len({line.count("|") for line in grid}) == 1


def test_every_experiment_is_planned_and_named_for_its_command(scripts):
    plan = (MIX / "README.md").read_text()
    for one in scripts.page.EXPERIMENTS:
        assert f"### `{one.__name__}.py`" in plan
        table = scripts.page.KEPT.load(one.__name__)
        if table:
            assert table["command"] == f"python experiments/mix/{one.__name__}.py"


def test_the_target_skill_is_the_product_of_its_parts(scripts):
    skills = scripts.skills
    bits_NI = skills.bits(200, torch.Generator().manual_seed(0))
    labels = dict(zip(skills.SKILLS, skills.labels(bits_NI).unbind(1), strict=True))
    signs = {name: 2 * label - 1 for name, label in labels.items()}
    assert torch.equal(signs["product"], signs["first"] * signs["second"])
    assert skills.graph()[0 * 8 + 2] == skills.graph()[1 * 8 + 2] == 0.5
    assert sum(skills.graph()) == 8 + 2 * 0.5


def test_questions_of_sorting_have_the_right_answers(scripts):
    sorting, random = scripts.sorting, torch.Generator().manual_seed(0)
    for length in (2, 9):
        tokens, answer = sorting.question("sort", length, random)
        numbers = tokens[1 : 1 + length]
        assert tokens[answer].tolist() == sorted(numbers.tolist())
        for _ in range(20):
            tokens, answer = sorting.question("next", length, random)
            ordered = sorted(tokens[1 : 1 + length].tolist())
            at = ordered.index(int(tokens[-2]))
            assert tokens[answer].tolist() == [ordered[min(at + 1, length - 1)]]
    rows = [("sort", 5), ("next", 8), ("sort", 11)]
    tokens_BL, answer_BL = sorting.batch_of(rows, seed=3)
    assert tokens_BL.shape == answer_BL.shape
    again, _ = sorting.batch_of(rows, seed=3)
    assert torch.equal(tokens_BL, again)


def test_pictures_of_a_task_are_scored_the_same_padded_or_not_where_nothing_changes(scripts):
    pictures = scripts.pictures
    made = pictures.data(0)
    for task in pictures.TASKS:
        side = pictures.SIDES[task]
        assert made.inputs[task]["train"].shape == (pictures.TRAIN, 1, side, side)
    torch.manual_seed(0)
    model = pictures.Network()
    x = made.inputs["clean"]["val"]
    assert pictures.cropped("clean", model("clean", pictures.padded(x, 16))).shape == x[:, 0].shape
    found = pictures.scores(model, made, "val")
    assert set(found) == set(pictures.TASKS)
