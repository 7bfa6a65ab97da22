"""Recipes: mergekit's own examples, what their keys mean, and every wrong one named.

The forms of the recipes are those of mergekit's README and of its example for each method.
"""

import json

import pytest
import torch
import yaml

from polytask.errors import DataError, UsageError
from polytask.merge import (
    DARE,
    PCB,
    SLERP,
    TIES,
    Average,
    Breadcrumbs,
    DareTies,
    ModelStock,
    Options,
    TaskArithmetic,
    read_recipe,
)
from polytask.merge.settings import Layers, value

from .saved import save, tuned

NAMES = [
    "embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("self_attn.q", "mlp.up")),
    "model.norm.weight",
]


@pytest.fixture
def models(tmp_path):
    draw = torch.Generator().manual_seed(0)
    start = {name: torch.randn(6, 6, generator=draw) for name in NAMES}
    save(tmp_path / "base", start)
    for i, name in enumerate(("a", "b", "c")):
        save(tmp_path / name, tuned(start, i))
    return tmp_path


def job(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return read_recipe(path).job(Options())


def recipe(method, names="ab", base="base", each=None, **top):
    listed = [{"model": n, **({"parameters": each} if each else {})} for n in names]
    return {"merge_method": method, "base_model": base, "models": listed, **top}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {
                "merge_method": "linear",
                "models": [
                    {"model": "a", "parameters": {"weight": 1.0}},
                    {"model": "b", "parameters": {"weight": 0.3}},
                ],
            },
            Average((1.0, 0.3)),
        ),
        (recipe("task_arithmetic", each={"weight": 0.5}), TaskArithmetic(1.0, (0.5, 0.5))),
        (
            recipe(
                "task_arithmetic",
                each={"weight": 0.5},
                parameters={"lambda": 0.4, "normalize": True},
            ),
            TaskArithmetic(0.4, (0.5, 0.5)),
        ),
        (
            recipe("task_arithmetic", each={"weight": 2}, parameters={"normalize": True}),
            TaskArithmetic(1.0, (0.5, 0.5)),
        ),
        (
            recipe(
                "ties",
                each={"weight": 1, "density": 0.5},
                parameters={"int8_mask": True, "normalize": True},
            ),
            TIES(0.5, 1.0, (1.0, 1.0)),
        ),
        (
            recipe("ties", parameters={"weight": 1, "density": 0.5, "over": "tensor", "lambda": 2}),
            TIES(0.5, 2, (1.0, 1.0), "tensor"),
        ),
        (
            recipe(
                "dare_linear",
                each={"weight": 1, "density": 0.25},
                parameters={"rescale": True, "seed": 3},
            ),
            DARE(0.75, 1.0, (1.0, 1.0), 3),
        ),
        (
            recipe(
                "dare_ties", each={"weight": 1, "density": 0.25}, parameters={"normalize": True}
            ),
            DareTies(0.75, 1.0, 1.0, (1.0, 1.0)),
        ),
        (
            recipe("breadcrumbs", each={"weight": 1, "density": 0.9}),
            Breadcrumbs(0.9, 0.01, 1.0, (1.0, 1.0)),
        ),
        (recipe("slerp", base="a", parameters={"t": 0.25}), SLERP(0.25)),
        (recipe("slerp", names="b", base="a", parameters={"t": 0.25}), SLERP(0.25)),
        (recipe("model_stock", parameters={"filter_wise": False}), ModelStock()),
        (recipe("pcb", parameters={"ratio": 0.2, "weight": 2}), PCB(0.2, 1.0, (2, 2))),
        (
            recipe("ties", names=("a", "b", "base"), parameters={"weight": 1, "density": 0.1}),
            TIES(0.1, 1.0, (1.0, 1.0)),
        ),
    ],
)
def test_a_recipe_is_the_method_with_its_settings(models, raw, expected):
    made = job(models, raw)
    assert {made.method_of(name) for name in NAMES} == {expected}
    made.tensors()
    assert made.recipe == yaml.safe_dump(raw, sort_keys=False)


GRADIENT = """
slices:
  - sources:
      - model: a
        layer_range: [0, 5]
      - model: b
        layer_range: [0, 5]
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""


def test_mergekits_example_of_a_gradient(models):
    made = job(models, GRADIENT)
    t = {name: made.method_of(name).t for name in NAMES}
    assert [t[f"model.layers.{i}.self_attn.q.weight"] for i in range(5)] == [0, 0.5, 0.3, 0.7, 1]
    assert [t[f"model.layers.{i}.mlp.up.weight"] for i in range(5)] == [1, 0.5, 0.7, 0.3, 0]
    assert t["embed_tokens.weight"] == t["model.norm.weight"] == 0.5
    found, _ = made.tensors()
    assert {v.dtype for v in found.values()} == {torch.float16}


def test_gradients_are_interpolated_between_layers():
    layers = Layers.of([f"h.{i}.w" for i in range(9)] + ["decoder.0.w", "decoder.1.w", "wte"])
    assert [value([0, 1, 0], f"h.{i}.w", layers) for i in range(9)] == [
        0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0,
    ]  # fmt: skip
    assert value([2, 4], "decoder.1.w", layers) == 4
    assert value([2, 4], "wte", layers) == 2
    assert value([7], "h.3.w", layers) == 7
    assert value([{"filter": "x", "value": 1}], "wte", layers) is None


def test_a_condition_that_does_not_hold_falls_back_to_the_recipes_value(models):
    raw = recipe(
        "task_arithmetic",
        each={"weight": [{"filter": "mlp", "value": 0.5}]},
        parameters={"weight": 0.1},
    )
    made = job(models, raw)
    assert made.method_of("model.layers.0.mlp.up.weight").weights == (0.5, 0.5)
    assert made.method_of("model.norm.weight").weights == (0.1, 0.1)


WRONG = {
    "unknown key": (
        recipe("ties") | {"merge_metod": 1},
        "'merge_metod'. Did you mean 'merge_method'?",
    ),
    "unknown method": (recipe("tis"), "Unknown merge_method 'tis'. Did you mean 'ties'?"),
    "foreign method": (recipe("della"), "merge_method 'della' of mergekit's is not supported"),
    "no method": ({"models": [{"model": "a"}]}, "merge_method is missing"),
    "modules": (recipe("ties") | {"modules": {}}, "modules is not supported"),
    "chat_template": (recipe("ties") | {"chat_template": "auto"}, "chat_template is not supported"),
    "unknown parameter": (
        recipe("ties", parameters={"densty": 1}),
        "'densty'. Did you mean 'density'?",
    ),
    "a parameter of another method": (
        recipe("linear", parameters={"gamma": 1}),
        "Unknown key of parameters",
    ),
    "unknown parameter of a model": (
        recipe("ties", each={"wieght": 1}),
        "'wieght'. Did you mean 'weight'?",
    ),
    "unknown key of a model": (
        recipe("ties") | {"models": [{"modle": "a"}]},
        "'modle'. Did you mean 'model'?",
    ),
    "global parameter at a model": (
        recipe("ties", each={"lambda": 1}),
        "lambda is one for all models",
    ),
    "no weight": (recipe("ties", parameters={"density": 1}), "weight is missing for a"),
    "no density": (recipe("ties", each={"weight": 1}), "density is missing for a"),
    "densities that differ": (
        recipe("ties")
        | {
            "models": [
                {"model": "a", "parameters": {"weight": 1, "density": 0.5}},
                {"model": "b", "parameters": {"weight": 1, "density": 0.3}},
            ]
        },
        "density differs between the models (0.5, 0.3); ties has one",
    ),
    "a sum instead of a mean": (
        recipe("ties", each={"weight": 1, "density": 0.5}, parameters={"normalize": False}),
        "normalize is false, and only true is supported: the models that agree are averaged",
    ),
    "no rescaling": (
        recipe("dare_linear", each={"weight": 1, "density": 0.5}, parameters={"rescale": False}),
        "rescale is false, and only true",
    ),
    "dare_ties as mergekit sums": (
        recipe("dare_ties", each={"weight": 1, "density": 0.5}),
        "normalize is missing, and only true",
    ),
    "filter_wise": (recipe("model_stock", parameters={"filter_wise": True}), "filter_wise is true"),
    "three models for an arc": (
        recipe("slerp", "abc", "a", parameters={"t": 0.5}),
        "one other model",
    ),
    "an arc without a base": (
        recipe("slerp", base=None, parameters={"t": 0.5}),
        "no base_model came",
    ),
    "stacked slices": (
        {"merge_method": "linear", "slices": [{"sources": []}, {"sources": []}]},
        "stack layers",
    ),
    "part of the layers": (
        {
            "merge_method": "linear",
            "parameters": {"weight": 1},
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 3]},
                        {"model": "b", "layer_range": [0, 3]},
                    ]
                }
            ],
        },
        "gives the layers [0, 3] of its 5",
    ),
    "models and slices": (recipe("ties") | {"slices": []}, "either models or slices"),
    "no models": (recipe("ties", names=""), "models is []"),
    "an absent model": (
        recipe("linear", names=("a", "z"), parameters={"weight": 1}),
        "'z' is neither beside",
    ),
    "an adapter": (recipe("linear", names=("a+lora",)), "adds an adapter"),
    "a dtype": (recipe("linear") | {"dtype": "float31"}, "'float31'. Did you mean 'float32'?"),
    "tokens": (
        recipe("linear") | {"tokenizer": {"source": "base", "tokens": {}}},
        "tokens of tokenizer",
    ),
    "a tokenizer's model": (recipe("linear") | {"tokenizer_source": "a"}, "only base and union"),
    "both tokenizers": (
        recipe("linear") | {"tokenizer_source": "base", "tokenizer": {}},
        "not both",
    ),
    "a value of no sort": (recipe("linear", parameters={"weight": None}), "weight is None"),
    "a condition of other keys": (
        recipe("linear", parameters={"weight": [{"fliter": "a", "value": 1}]}),
        "'fliter' is none",
    ),
    "out of range": (recipe("ties", parameters={"weight": 1, "density": 3}), "density"),
    "density that varies": (
        recipe("ties", parameters={"weight": 1, "density": [1, 0.5]}),
        "looks at the whole model at once",
    ),
    "no mapping": ("- a\n- b\n", "holds no mapping"),
    "no YAML": ("a: [b", "is not YAML"),
    "needs data": (recipe("adapter-merge"), "call it from Python"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_answered_with_what_to_do(models, case):
    raw, said = WRONG[case]
    with pytest.raises(UsageError) as caught:
        job(models, raw).tensors()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def tokenizer(folder, tokens, added=(), rows=None):
    entries = [{"id": i, "content": t, "special": True} for t, i in added]
    made = {"model": {"type": "BPE", "vocab": tokens}, "added_tokens": entries}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    if rows is not None:
        (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))


@pytest.fixture
def vocabularies(tmp_path):
    """A base of 4 tokens in 6 rows; a model with them in another order; one with a token more."""
    rows = torch.arange(6.0)[:, None] * torch.ones(3) + 10
    w = torch.randn(2, 2)
    tokens = {"a": 0, "b": 1, "c": 2, "d": 3}
    save(tmp_path / "base", {"embed.weight": rows, "w": w})
    tokenizer(tmp_path / "base", tokens, rows=6)
    save(tmp_path / "a", {"embed.weight": rows[[3, 2, 1, 0]] + 1, "w": w})
    tokenizer(tmp_path / "a", {"a": 3, "b": 2, "c": 1, "d": 0}, rows=4)
    more = torch.cat([rows[:4] + 2, torch.full((1, 3), 77.0)])
    save(tmp_path / "b", {"embed.weight": more, "w": w})
    tokenizer(tmp_path / "b", tokens, [("<new>", 4)], rows=5)
    return tmp_path


def test_rows_of_a_vocabulary_are_aligned_by_token(vocabularies):
    raw = recipe("task_arithmetic", "ab", each={"weight": 1}, tokenizer_source="base")
    found, _ = job(vocabularies, raw).tensors()
    # Tokens move by 1 from a and by 2 from b; rows without a token stay where they are.
    expected = torch.tensor([10.0, 11, 12, 13, 14, 15]) + torch.tensor([3.0, 3, 3, 3, 0, 0])
    assert torch.equal(found["embed.weight"], expected[:, None] * torch.ones(3))


def test_the_union_adds_tokens_and_says_so_in_the_tokenizer(vocabularies):
    raw = recipe("task_arithmetic", "ab", each={"weight": 1}, tokenizer={"source": "union"})
    made = job(vocabularies, raw)
    made.run(vocabularies / "out")
    from .saved import load

    found = load(vocabularies / "out")["embed.weight"]
    assert torch.equal(found[4], torch.full((3,), 77.0))  # b alone has it
    assert torch.equal(found[:4], (torch.tensor([13.0, 14, 15, 16]))[:, None] * torch.ones(3))
    written = json.loads((vocabularies / "out" / "tokenizer.json").read_text())
    assert written["added_tokens"] == [{"id": 4, "content": "<new>", "special": True}]
    assert json.loads((vocabularies / "out" / "config.json").read_text())["vocab_size"] == 6


def test_without_a_choice_differing_vocabularies_are_refused(vocabularies):
    with pytest.raises(DataError, match=r"'embed.weight' has shape \(6, 3\).*tokenizer_source"):
        job(vocabularies, recipe("task_arithmetic", "ab", each={"weight": 1}))


def test_a_union_of_two_tokenizers_is_refused(vocabularies):
    tokenizer(vocabularies / "b", {"x": 0, "b": 1, "c": 2, "d": 3, "<new>": 4}, rows=5)
    with pytest.raises(UsageError, match=r"splits text by 2 tokens .* does not know"):
        job(
            vocabularies, recipe("linear", "ab", parameters={"weight": 1}, tokenizer_source="union")
        )


def test_a_model_without_a_tokenizer_cannot_be_aligned(vocabularies):
    (vocabularies / "a" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"a has no tokenizer.json, vocab.json or vocab.txt"):
        job(vocabularies, recipe("linear", "ab", parameters={"weight": 1}, tokenizer_source="base"))
    (vocabularies / "a" / "vocab.txt").write_text("d\nc\nb\na\n")
    raw = recipe("task_arithmetic", "a", each={"weight": 1}, tokenizer_source="base")
    found, _ = job(vocabularies, raw).tensors()
    assert found["embed.weight"][:, 0].tolist() == [11, 12, 13, 14, 14, 15]


def test_a_damaged_tokenizer_is_named(vocabularies):
    (vocabularies / "a" / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(DataError, match=r"tokenizer.json is no tokenizer that can be read"):
        job(vocabularies, recipe("linear", "ab", parameters={"weight": 1}, tokenizer_source="base"))
