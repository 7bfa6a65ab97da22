"""A library's adapters by their likeness: MBC's clusters, and Arrow's prototypes for a new task.

Factors are multiples of 1/1024 and scales are 1.5, so that products and averages of two or four
are exact in float32 and float64 alike.
"""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from polytask.adapt import LoRA, adapt, cluster, load_peft, save_adapted, save_peft
from polytask.adapt.mbc import flat
from polytask.errors import UsageError
from polytask.peft_folders import CONFIG, WEIGHTS
from polytask.recipes.adapter_library import Library
from polytask.recipes.adapter_likeness import cluster_library, route

NAMES = ("a0", "b0", "a1", "b1", "a2", "a3")


def base(wide: int = 6) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, wide), nn.Tanh(), nn.Linear(wide, 3))


def drawn(generator: torch.Generator, like: Tensor, size: float) -> Tensor:
    grid = torch.randn(like.shape, generator=generator) * size * 1024
    return grid.round() / 1024


def made(names=NAMES, noise=0.1, seed=1, method=None, model=None, where=None):
    """Return adapters of a centre for each first letter, with noise of their own."""
    method = LoRA(2, 3.0) if method is None else method
    model = base() if model is None else model
    adapted = adapt(model, method, names) if where is None else adapt(model, method, names, where)
    own = torch.Generator().manual_seed(seed)
    for i, value in enumerate(adapted.parts.parameters()):
        for row, name in zip(value.data, names, strict=True):
            centre = torch.Generator().manual_seed(100 * ord(name[0]) + i)
            row.copy_(drawn(centre, row, 1.0) + drawn(own, row, noise))
    return adapted


@pytest.fixture
def shelf(tmp_path: Path) -> Library:
    save_adapted(tmp_path / "all", made())
    library = Library(tmp_path / "lib")
    library.add(tmp_path / "all")
    return library


def change(folder: Path) -> dict[str, Tensor]:
    """Return a PEFT folder's changes, read by nothing of polytask's but the file format."""
    config = json.loads((folder / CONFIG).read_text())
    assert config["use_rslora"] is False
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    found = {}
    for name, down_RI in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up_OR = tensors[name.replace("lora_A", "lora_B")]
        alpha = config["alpha_pattern"].get(layer, config["lora_alpha"])
        assert config["rank_pattern"].get(layer, config["r"]) == len(down_RI)
        found[layer] = alpha / len(down_RI) * up_OR.double() @ down_RI.double()
    return found


def test_clusters_of_two_centres_come_out_and_are_those_of_the_model(shelf):
    groups = cluster_library(shelf, 2)
    assert [(g.name, g.members, g.next) for g in groups] == [
        ("cluster-0", ("a0", "a1", "a2", "a3"), "cluster-1"),
        ("cluster-1", ("b0", "b1"), "cluster-0"),
    ]
    for group in groups:
        assert group.within is not None
        assert group.within > 0.9 > 0.5 > abs(group.beside)
    assert groups[0].beside == pytest.approx(groups[1].beside)
    names = [entry.name for entry in shelf.entries()]
    loaded = load_peft(base(), {name: shelf.folder / name for name in names})
    of_T = cluster(flat(loaded), 3).of_T
    found = cluster_library(shelf, 3)
    assert [g.members for g in found] == [
        tuple(name for name, k in zip(names, of_T, strict=True) if k == own) for own in range(3)
    ]


def test_similarities_are_mean_cosines_of_what_is_clustered(shelf):
    from polytask.adapt.mbc import embedded

    names = sorted(NAMES)
    loaded = load_peft(base(), {name: shelf.folder / name for name in names})
    points = dict(zip(names, embedded(flat(loaded)), strict=True))

    def mean(pairs):
        return sum(float(points[x] @ points[y]) for x, y in pairs) / len(pairs)

    for group in cluster_library(shelf, 2):
        mine, others = group.members, [n for n in names if n not in group.members]
        assert group.within == pytest.approx(mean([(x, y) for x in mine for y in mine if x != y]))
        assert group.beside == pytest.approx(mean([(x, y) for x in mine for y in others]))
    (only,) = cluster_library(shelf, 1)
    assert (only.members, only.next, only.beside) == (tuple(names), None, None)
    assert all(group.within is None for group in cluster_library(shelf, 6))


def test_a_clusters_adapter_is_the_mean_of_its_changes_to_the_last_bit(shelf, tmp_path):
    groups = cluster_library(shelf, 2, tmp_path / "fewer")
    assert sorted(p.name for p in (tmp_path / "fewer").iterdir()) == ["cluster-0", "cluster-1"]
    for group in groups:
        merged = change(tmp_path / "fewer" / group.name)
        apart = [change(shelf.folder / name) for name in group.members]
        assert merged.keys() == {"0", "2"}
        for layer, found in merged.items():
            wanted = torch.stack([own[layer] for own in apart]).mean(0)
            assert found.dtype == torch.float64
            assert torch.equal(found, wanted)
    fewer = Library(tmp_path / "again")
    for group in groups:
        fewer.add(tmp_path / "fewer" / group.name, same_base=True)
    assert [entry.rank for entry in fewer.entries()] == [8, 4]


def test_scales_that_differ_do_not_part_adapters_of_one_change(shelf, tmp_path):
    twin = made(("a9",), seed=1, method=LoRA(2, 1.5))  # half the scale, so twice the B
    for name, value in twin.parts.named_parameters():
        if name.endswith("up_TRO"):
            value.data *= 2
    save_adapted(tmp_path / "twin", twin)
    shelf.add(tmp_path / "twin")
    assert [g.members for g in cluster_library(shelf, 2)] == [
        ("a0", "a1", "a2", "a3", "a9"), ("b0", "b1"),
    ]  # fmt: skip


def test_nothing_stays_of_merged_clusters_that_could_not_be_written(shelf, tmp_path, monkeypatch):
    done = Library.compose

    def fails(self, weights, out, rank=None, progress=None):
        if out.name == "cluster-1":
            raise OSError(28, "No space left on device")
        return done(self, weights, out, rank, progress)

    monkeypatch.setattr(Library, "compose", fails)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception, match="No space left on device"):
        cluster_library(shelf, 2, tmp_path / "fewer")
    assert sorted(tmp_path.iterdir()) == before


def top_input(matrix_OI: Tensor) -> Tensor:
    return torch.linalg.svd(matrix_OI)[2][0]


@pytest.mark.parametrize("like", ["b", "a2"])
def test_the_adapter_a_new_one_was_made_from_comes_first(shelf, tmp_path, like):
    if like == "b":
        new = made(("b7",), noise=0.05, seed=9)
    else:  # nearer to one adapter than to its centre
        new = adapt(base(), LoRA(2, 3.0), ("new",))
        for to, from_ in zip(new.parts.parameters(), made().parts.parameters(), strict=True):
            to.data.copy_(from_.data[4:5])
            to.data += 0.01 * torch.randn(to.shape, generator=torch.Generator().manual_seed(3))
    save_adapted(tmp_path / "new", new)
    routed = route(shelf, tmp_path / "new", top=2, temperature=0.1)
    scores = [match.score for match in routed.matches]
    assert scores == sorted(scores, reverse=True)
    assert routed.layers == 2
    if like == "b":
        assert {m.name for m in routed.matches[:2]} == {"b0", "b1"}
        assert routed.task == "b7"
    else:
        assert routed.matches[0].name == "a2"
        assert scores[0] > 0.99
    mine = new.change(routed.task)
    for match in routed.matches:
        own = change(shelf.folder / match.name)
        wanted = [
            abs(float(top_input(mine[f"{k}.weight"].double()) @ top_input(own[k]))) for k in own
        ]
        assert match.score == pytest.approx(sum(wanted) / 2, abs=1e-6)
    chosen = torch.softmax(torch.tensor(scores[:2], dtype=torch.float64) / 0.1, 0).tolist()
    assert [match.weight for match in routed.matches] == pytest.approx([*chosen, 0, 0, 0, 0])
    assert list(routed.weights) == [match.name for match in routed.matches[:2]]


def test_what_serves_a_new_task_is_the_weighted_sum_of_changes(shelf, tmp_path):
    save_peft(tmp_path / "new", made(("b7",), seed=9), "b7")
    routed = route(shelf, tmp_path / "new", top=3, same_base=True, out=tmp_path / "served")
    assert routed.task == "new"
    assert sum(routed.weights.values()) == pytest.approx(1)
    for layer, found in change(tmp_path / "served").items():
        wanted = sum(w * change(shelf.folder / n)[layer] for n, w in routed.weights.items())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    everyone = route(shelf, tmp_path / "new", top=0, same_base=True)
    assert len(everyone.weights) == len(NAMES)


def test_layers_that_an_adapter_leaves_alone_count_as_zero(shelf, tmp_path):
    part = made(("b8",), noise=0.0, where="0")
    save_adapted(tmp_path / "part", part)
    save_adapted(tmp_path / "other", made(("b9",), noise=0.0, where="2"))
    save_adapted(tmp_path / "new", made(("b7",), noise=0.0))
    shelf.add(tmp_path / "part")
    shelf.add(tmp_path / "other")
    # The seed of each layer's centre follows its place, so only the first layer is the same.
    by_name = {match.name: match for match in route(shelf, tmp_path / "new").matches}
    assert by_name["b8"].score == pytest.approx(0.5)
    assert (by_name["b8"].layers, by_name["b0"].layers) == (1, 2)
    # b9 shares no layer with a new one of the first layer, so it never gets a weight.
    routed = route(shelf, tmp_path / "part", top=0)
    (apart,) = [match for match in routed.matches if match.name == "b9"]
    assert (apart.score, apart.layers, apart.weight) == (0.0, 0, 0.0)
    assert routed.matches[-1] == apart
    assert routed.matches[0].name == "b8"
    assert routed.matches[0].score == 1.0


def test_an_adapter_of_convolutions_is_routed_by_its_patches(tmp_path):
    def convolution():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 4, 3))

    library = Library(tmp_path / "lib")
    save_adapted(tmp_path / "all", made(("a0", "b0"), model=convolution()))
    library.add(tmp_path / "all")
    save_adapted(tmp_path / "new", made(("b1",), seed=4, model=convolution()))
    first, second = route(library, tmp_path / "new").matches
    assert (first.name, second.name) == ("b0", "a0")
    assert first.score > 0.9
    assert [g.members for g in cluster_library(library, 2)] == [("a0",), ("b0",)]


def other_file(tmp_path: Path, what: str) -> Path:
    path = tmp_path / f"of-{what}"
    untrained = adapt(base(), LoRA(2, 3.0), ("x",))
    other = base()
    other[0].weight.data += 1
    makers = {
        "rank": lambda: made(("x",), method=LoRA(3, 3.0)),
        "layers": lambda: made(("x",), where="0"),
        "zero": lambda: untrained,
        "two": lambda: made(("x", "y")),
        "base": lambda: made(("x",), model=other),
    }
    save_adapted(path, makers[what]())
    return path


@pytest.mark.parametrize(
    ("what", "use", "said"),
    [
        ("", lambda lib, path: cluster_library(lib), "6 adapters, fewer than 10 clusters; give"),
        ("", lambda lib, path: cluster_library(lib, 0), "clusters is 0; give a whole number from"),
        ("rank", lambda lib, path: lib.add(path) and cluster_library(lib, 2),
         r"At '0' 'a0' has A \(2, 8\) and B \(6, 2\), and 'x' A \(3, 8\) and B \(6, 3\); clusters"),
        ("layers", lambda lib, path: lib.add(path) and cluster_library(lib, 2),
         "'a0' changes '2', which 'x' leaves alone"),
        ("zero", lambda lib, path: route(lib, path), "'x' changes nothing, so it has no direction"),
        ("two", lambda lib, path: route(lib, path), r"holds 2 tasks \(x, y\); say which is new"),
        ("two", lambda lib, path: route(lib, path, "z"), "Unknown task 'z'"),
        ("base", lambda lib, path: route(lib, path), "belongs to another base: it has the finger"),
        ("two", lambda lib, path: route(lib, path, "x", -1), "top is -1; give a whole number >= 0"),
        ("two", lambda lib, path: route(lib, path, "x", temperature=0.0), "temperature is 0.0"),
        ("two", lambda lib, path: route(lib, path, "x", out=lib.folder), "exists and is left"),
        ("", lambda lib, path: cluster_library(lib, 2, lib.folder), "exists and is left as it is"),
        ("", lambda lib, path: lib.factors("a"), "Unknown adapter 'a'"),
    ],
)  # fmt: skip
def test_wrong_use_is_answered(shelf, tmp_path, what, use, said):
    path = other_file(tmp_path, what) if what else tmp_path
    with pytest.raises(UsageError, match=said):
        use(shelf, path)


def test_adapters_of_no_common_layer_or_of_other_sizes_are_refused(tmp_path):
    library = Library(tmp_path / "lib")
    save_peft(tmp_path / "first", made(("x",), where="0"), "x", base="org/model")
    library.add(tmp_path / "first")
    save_peft(tmp_path / "second", made(("x",), where="2"), "x", base="org/model")
    with pytest.raises(UsageError, match=r"No adapter of .* shares a layer with .*second, .* '2'"):
        route(library, tmp_path / "second")
    wide = made(("x",), model=base(wide=7))
    save_peft(tmp_path / "wide", wide, "x", base="org/model")
    with pytest.raises(UsageError, match=r"\.0', \(8, 7\) there and \(8, 6\) in 'first'"):
        route(library, tmp_path / "wide")
    save_peft(tmp_path / "silent", made(("x",), where="0"), "x")
    with pytest.raises(UsageError, match="does not say that its base is the library's"):
        route(library, tmp_path / "silent")
    assert route(library, tmp_path / "silent", same_base=True).matches[0].name == "first"


def test_adapters_that_are_the_same_are_not_parted(tmp_path):
    library = Library(tmp_path / "lib")
    save_peft(tmp_path / "x", made(("x",)), "x", base="org/model")
    for name in "abc":
        library.add(tmp_path / "x", name)
    with pytest.raises(UsageError, match="has fewer than 2 adapters that differ; give a smaller"):
        cluster_library(library, 2)


def test_an_empty_library_is_no_answer(tmp_path, shelf):
    for entry in shelf.entries():
        for file in (shelf.folder / entry.name).iterdir():
            file.unlink()
    for use in (lambda: cluster_library(shelf, 1), lambda: route(shelf, tmp_path / "all")):
        with pytest.raises(UsageError, match="lib holds no adapter; add some with `polytask adapt"):
            use()
