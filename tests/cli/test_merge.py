"""`polytask merge`: recipes and differences from the command line."""

import base64
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polytask.cli.merge import Shown

from .conftest import Call, contents


@pytest.fixture
def models(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "embed.weight": (30, 8),
        "layers.0.w": (8, 8),
        "layers.1.w": (8, 8),
        "layers.10.w": (8, 8),
    }
    start = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for i, name in enumerate(("base", "a", "b")):
        (tmp_path / name).mkdir()
        moved = {n: v + 0.1 * i * torch.randn(v.shape, generator=draw) for n, v in start.items()}
        save_file(moved, tmp_path / name / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
        "- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.25}}\n"
    )
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_recipe_becomes_a_model(polytask: Call, models: Path):
    said = polytask("merge", "recipe.yaml")
    assert said.code == 0
    assert said.out.startswith("Wrote merged/recipe: 4 tensors, 432 elements, in ")
    stated, *rest = said.err.splitlines()
    assert stated.startswith(
        "Merging 3 models, 4 tensors, into merged/recipe: 0.00 GB on disk, at "
    )
    assert "MiB of memory, 1 thread." in stated
    assert rest == []
    base, a, b = (weights(models / name) for name in ("base", "a", "b"))
    for name, found in weights(models / "merged" / "recipe").items():
        start = base[name].double()
        expected = start + 0.5 * (a[name].double() - start) + 0.25 * (b[name].double() - start)
        assert torch.equal(found, expected.float())
    written = (models / "merged" / "recipe" / "merge.yaml").read_text()
    assert written == (models / "recipe.yaml").read_text()


def test_json_and_options(polytask: Call, models: Path):
    said = polytask(
        "merge", "recipe.yaml", "--out", "out", "--json", "--threads", 2, "--shard-size", "0.3KB",
        "--leave-out", "embed.*", "--nonfinite", "continue",
    )  # fmt: skip
    assert said.code == 0
    found = json.loads(said.out)
    assert found["out"] == "out"
    assert (found["tensors"], found["elements"]) == (3, 192)
    assert found["labels"] == ["base", "a", "b"]
    assert len(list((models / "out").glob("model-*-of-00003.safetensors"))) == 1 + 1 + 1


def test_a_page_about_the_inputs_is_written_beside(polytask: Call, models: Path):
    said = polytask("merge", "recipe.yaml", "--report", "pages/inputs.html")
    assert said.code == 0
    assert said.out.splitlines()[-1] == "Report: pages/inputs.html"
    text = (models / "pages" / "inputs.html").read_text()
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("<")[0])
    (block,) = data["runs"]
    assert (block["kind"], block["title"]) == ("merge", "recipe")
    assert block["maps"]["labels"] == ["a", "b"]
    layers = [one["name"] for one in block["maps"]["meetings"]]
    assert layers == ["whole model", "embed.weight", "layers.0", "layers.1", "layers.10"]
    found = json.loads(polytask("merge", "--diff", "a", "b", "--base", "base", "--json").out)
    packed = base64.b64decode(block["maps"]["meetings"][0]["conflicts"])
    assert list(packed) == [round(100 * found["all"]["sign_conflicts"])]
    assert len(weights(models / "merged" / "recipe")) == 4
    again = polytask("merge", "recipe.yaml", "--out", "o", "--report", "p.html", "--json")
    assert json.loads(again.out)["report"] == "p.html"


def test_a_page_needs_a_base_to_count_changes_from(polytask: Call, models: Path):
    (models / "mean.yaml").write_text(
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
        "- {model: b, parameters: {weight: 1}}\n"
    )
    said = polytask("merge", "mean.yaml", "--report", "p.html")
    assert said.code == 2
    assert "give the base model (base_model in a recipe)" in said.err
    assert not (models / "merged").exists()
    assert not (models / "p.html").exists()


def test_a_base_that_is_none_is_warned_of_before_the_merge(polytask: Call, models: Path):
    strange = {n: v.flip(0).roll(3, -1) * 2 for n, v in weights(models / "a").items()}
    save_file(strange, models / "a" / "model.safetensors")
    said = polytask("merge", "recipe.yaml")
    assert said.code == 0
    assert "Warning: a lies " in said.err
    assert "Is that its base?" in said.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, ["Give a recipe", "--diff"]),
        (["nowhere.yaml"], 2, ["nowhere.yaml", "No such file"]),
        (["recipe.yaml", "--threads", "0"], 2, ["threads is 0"]),
        (
            ["recipe.yaml", "--threads", "two"],
            2,
            ["--threads", "integer", "`polytask merge --help`"],
        ),
        (["recipe.yaml", "--shard-size", "big"], 2, ["'big' is no size", "5GB"]),
        (["recipe.yaml", "--shard-size", "0"], 2, ["'0' is no size"]),
        (["recipe.yaml", "--base", "a"], 2, ["--base goes with --diff", "base_model"]),
        (["recipe.yaml", "--out", "a"], 2, ["a exists and is left as it is", "--out"]),
        (["recipe.yaml", "--nonfinite", "skip"], 2, ["'skip'", "refuse", "continue"]),
        (
            ["--diff", "a", "b", "--shard-size", "1KB"],
            2,
            ["--shard-size has no meaning with --diff"],
        ),
        (["recipe.yaml", "--diff", "a", "b"], 2, ["RECIPE has no meaning with --diff"]),
        (["--diff", "a", "b", "--report", "p.html"], 2, ["--report has no meaning with --diff"]),
        (["--diff", "a"], 2, ["--diff", "2 arguments"]),
        (["--diff", "a", "z"], 2, ["z does not exist"]),
    ],
)
def test_wrong_use_is_one_line(polytask: Call, models: Path, args, code, words):
    before = contents(models)
    said = polytask("merge", *args)
    assert said.code == code
    assert [word for word in words if word not in said.line] == []
    assert contents(models) == before


@pytest.mark.parametrize("parameters", ["{density: x}", "{density: 0.2, lambda: 1e-1}"])
def test_a_text_where_a_number_belongs_is_one_line(polytask: Call, models: Path, parameters):
    text = (models / "recipe.yaml").read_text().replace("task_arithmetic", "ties")
    (models / "recipe.yaml").write_text(f"{text}parameters: {parameters}\n")
    said = polytask("merge", "recipe.yaml")
    assert said.code == 2
    assert "give a number such as 0.5" in said.line


def test_a_damaged_model_is_one_line_and_exit_code_1(polytask: Call, models: Path):
    file = models / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    said = polytask("merge", "recipe.yaml")
    assert said.code == 1
    assert "model.safetensors is damaged" in said.line
    assert not (models / "merged").exists()


def test_nan_is_named_and_nothing_is_left_behind(polytask: Call, models: Path):
    spoiled = weights(models / "b")
    spoiled["layers.1.w"][3, 3] = float("nan")
    save_file(spoiled, models / "b" / "model.safetensors")
    said = polytask("merge", "recipe.yaml")
    assert said.code == 1
    assert "Tensor 'layers.1.w' of b holds values that are NaN" in said.err
    assert list((models / "merged").iterdir()) == []


def test_the_difference_of_two_models(polytask: Call, models: Path):
    said = polytask("merge", "--diff", "base", "a")
    assert said.code == 0
    assert said.out.rstrip().endswith("Heat map: diff.svg")
    order = [line.split()[0] for line in said.out.splitlines()[1:-1]]
    assert order == ["embed.weight", "layers.0", "layers.1", "layers.10", "all"]
    found = json.loads(polytask("merge", "--diff", "base", "a", "--json", "--out", "p.svg").out)
    base, a = (weights(models / name) for name in ("base", "a"))
    for name, one in found["tensors"].items():
        x, y = base[name].double().flatten(), a[name].double().flatten()
        assert one["distance"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
        assert one["cosine"] == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-12)
        assert one["largest"] == float((y - x).abs().max())
        assert one["sign_conflicts"] == float((x.sign() != y.sign()).double().mean())
        assert one["elements"] == x.numel()
    x, y = (torch.cat([m[n].double().flatten() for n in sorted(m)]) for m in (base, a))
    assert found["all"]["distance"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
    assert found["models"] == ["base", "a"]


def test_with_a_base_the_changes_are_compared(polytask: Call, models: Path):
    found = json.loads(polytask("merge", "--diff", "a", "b", "--base", "base", "--json").out)
    base, a, b = (weights(models / name) for name in ("base", "a", "b"))
    for name, one in found["tensors"].items():
        x, y = ((m[name].double() - base[name].double()).flatten() for m in (a, b))
        assert one["cosine"] == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-12)
        assert one["sign_conflicts"] == float((x.sign() != y.sign()).double().mean())


def test_the_picture_stands_alone_and_has_a_cell_for_every_tensor(polytask: Call, models: Path):
    polytask("merge", "--diff", "base", "a", "--out", "p.svg")
    text = (models / "p.svg").read_text()
    assert "href" not in text
    assert "url(" not in text
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text.split(":")[0] for title in root.iter(f"{space}title")]
    # A cell for every layer as a whole, and one for each kind of tensor in it.
    assert titles == [
        "embed.weight", "layers.0", "layers.0.w", "layers.1", "layers.1.w", "layers.10",
        "layers.10.w",
    ]  # fmt: skip
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{space}rect"):
        if box.get("x"):
            assert float(box.get("x")) + float(box.get("width")) <= width
            assert float(box.get("y")) + float(box.get("height")) <= height


def test_equal_models_differ_in_nothing(polytask: Call, models: Path):
    found = json.loads(polytask("merge", "--diff", "a", "a", "--json").out)
    assert found["all"]["distance"] == 0
    assert found["all"]["sign_conflicts"] == 0
    assert found["all"]["cosine"] == pytest.approx(1)


def test_help_does_not_even_load_torch():
    code = (
        "import sys; sys.argv = ['polytask', 'merge', '--help']\n"
        "from polytask.cli import main\n"
        "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_where_no_terminal_is_a_line_comes_now_and_then_with_the_time_left(capsys):
    now = [0.0]
    shown = Shown("merge out", clock=lambda: now[0])
    with shown:
        shown.phase("merging", 100)
        for step in range(10):
            now[0] = step * 4.0
            shown.advance(10)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "merge out: merging, 40%, about 18 s left"
    assert len(said) == 2
