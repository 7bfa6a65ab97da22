"""Libraries of trained LoRA: routed by Arrow, clustered and merged by MBC."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.adapt import (
    Adapted,
    Arrow,
    At,
    Clusters,
    DoRA,
    LoRA,
    adapt,
    arrow_of,
    cluster,
    clusters_of,
    load_adapted,
    merge_clusters,
    point,
    save_adapted,
)
from polytask.adapt.arrow import directions
from polytask.adapt.mbc import embedded, flat
from polytask.errors import UsageError
from polytask.testing.adapters import Count


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def library(tasks: int = 6, model: nn.Module | None = None) -> Adapted:
    """A model adapted by two LoRA of other ranks and scales, trained a little."""
    plans = [At(LoRA(3, 6.0), "0"), At(LoRA(2, 5.0, stabilised=True), "2")]
    adapted = adapt(model or base(), plans, [f"t{i}" for i in range(tasks)])
    for at, parameter in enumerate(adapted.parts.parameters()):
        parameter.data += drawn(at, *parameter.shape)
    return adapted


def test_directions_are_the_top_right_singular_vectors_of_the_exact_changes():
    down_ERI, up_ERO = drawn(0, 5, 3, 7), drawn(1, 5, 3, 4)
    for e, own in enumerate(directions(down_ERI, up_ERO)):
        top = torch.linalg.svd(up_ERO[e].T @ down_ERI[e])[2][0]
        assert abs(float(own @ top)) == pytest.approx(1.0, abs=1e-12)
        assert float(own[own.abs().argmax()]) > 0


def test_directions_of_ranks_above_the_layers_size():
    down_ERI, up_ERO = drawn(0, 2, 9, 7), drawn(1, 2, 9, 4)
    own = directions(down_ERI, up_ERO)[0]
    top = torch.linalg.svd(up_ERO[0].T @ down_ERI[0])[2][0]
    assert abs(float(own @ top)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("top", [1, 4, 6, 9])
def test_an_arrow_of_a_library_is_a_loop_over_tokens_and_experts(top, tmp_path):
    changes = [library().change(f"t{i}") for i in range(6)]
    routed = arrow_of(library(), top=top, temperature=0.7)
    x = drawn(50, 3, 5, 6)
    index_B = torch.tensor([0, -1, 4])
    with torch.no_grad(), routed.tasks(index_B):
        y = routed(x)
    plain = base()
    for b, t in enumerate(index_B.tolist()):
        for n in range(5):
            h = x[b, n]
            for name in ("0", "2"):
                layer = plain[int(name)]
                moves = [c[f"{name}.weight"] for c in changes]
                scores = [abs(float(torch.linalg.svd(m)[2][0] @ h.detach())) / 0.7 for m in moves]
                best = sorted(range(6), key=lambda e, s=scores: -s[e])[: min(top, 6)]
                weights = torch.softmax(torch.tensor([scores[e] for e in best]).double(), 0)
                own = F.linear(h, layer.weight, layer.bias)
                if t >= 0:
                    own = own + sum(w * moves[e] @ h for w, e in zip(weights, best, strict=True))
                h = torch.tanh(own) if name == "0" else own
            # Scores above are rounded to float64 numbers of Python and back; nothing is lost.
            assert torch.allclose(y[b, n], h, atol=1e-6)
    save_adapted(tmp_path / "a.safetensors", routed)
    again = load_adapted(tmp_path / "a.safetensors", base())
    with torch.no_grad(), again.tasks(index_B):
        assert torch.equal(again(x), y)


def test_a_token_along_a_prototype_takes_that_expert():
    model = nn.Sequential(nn.Linear(12, 5)).double()
    trained = adapt(model, LoRA(1, 1.0), [f"t{i}" for i in range(8)])
    adapter = trained.parts[0].at("0")
    adapter.down_TRI.data = torch.eye(12, dtype=torch.float64)[:8, None]
    adapter.up_TRO.data = drawn(0, 8, 1, 5)
    changes = [trained.change(f"t{i}")["0.weight"] for i in range(8)]
    routed = arrow_of(trained, top=1)
    tokens = torch.eye(12, dtype=torch.float64)[:8]
    with torch.no_grad(), routed.task("t0"):
        y = routed(tokens[None])[0]
    with routed.without():
        plain = routed(tokens[None])[0]
    for e in range(8):
        assert torch.allclose(y[e] - plain[e], changes[e] @ tokens[e], atol=1e-12)


def test_the_number_of_operators_does_not_depend_on_the_librarys_size():
    counts = []
    for many in (5, 40):
        routed = arrow_of(library(many))
        with Count() as count, routed.tasks(torch.tensor([0, 1])):
            routed(drawn(0, 2, 3, 6))
        counts.append(count.number)
    assert counts[0] == counts[1]


def test_tasks_of_an_arrow_may_be_others_and_it_makes_no_difference_which():
    routed = arrow_of(library(), tasks=("new", "other"))
    x = drawn(0, 2, 3, 6)
    with torch.no_grad():
        with routed.task("new"):
            first = routed(x)
        with routed.task("other"):
            assert torch.equal(routed(x), first)
    with pytest.raises(UsageError, match="nknown task 't0'"):
        routed.index(["t0"])


def test_a_point_follows_what_experts_became():
    routed = adapt(base(), Arrow(5, 2, 3), ("a",))
    adapter = routed.parts[0].at("0")
    adapter.up_ERO.data += drawn(0, *adapter.up_ERO.shape)
    point(routed)
    wanted = directions(adapter.down_ERI, adapter.up_ERO)
    assert torch.equal(adapter.prototypes_EI, wanted)
    with pytest.raises(UsageError, match="the model has no Arrow"):
        point(library())


@pytest.mark.parametrize(
    "use", [arrow_of, clusters_of, lambda a: merge_clusters(a, Clusters((0,)))]
)
def test_libraries_are_of_lora_on_linear_layers(use):
    with pytest.raises(UsageError, match="takes LoRA alone; DoRA came"):
        use(adapt(base(), DoRA(), ("a",)))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(UsageError, match="'0' is of kind 'conv'"):
        use(adapt(conv, LoRA(), ("a",)))
    folded = library(1)
    folded.fold("t0")
    with pytest.raises(UsageError, match="'t0' is folded into the base"):
        use(folded)


def planted(groups: int = 3, each: int = 4, size: int = 300) -> tuple[Tensor, list[int]]:
    of_T = [k for _ in range(each) for k in range(groups)]
    centres = drawn(0, groups, size)
    return torch.stack([centres[k] for k in of_T]) + 0.3 * drawn(1, len(of_T), size), of_T


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("components", [3, 64])
def test_planted_clusters_are_found(quantile, components):
    flat_TP, of_T = planted()
    found = cluster(flat_TP, 3, quantile, components)
    assert found.of_T == tuple(of_T)
    scaled = flat_TP * torch.linspace(0.01, 100, 12)[:, None]  # lengths do not count
    assert cluster(scaled.double(), 3, quantile, components).of_T == tuple(of_T)


@pytest.mark.parametrize("components", [1, 5, 64])
@pytest.mark.parametrize("quantile", [0.0, 0.31, 0.5, 0.9])
def test_what_is_clustered_is_numpys_quantile_and_svd(quantile, components):
    flat_TP = drawn(4, 9, 51)
    raw = flat_TP.numpy().copy()
    for row in raw:
        row[np.abs(row) < np.quantile(np.abs(row), quantile)] = 0
    u, s, _ = np.linalg.svd(raw, full_matrices=False)
    points = (u * s)[:, :components]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    ours = embedded(flat_TP, quantile, components).numpy()
    # Up to the signs and the order of components, which distances do not see.
    assert np.allclose(ours @ ours.T, points @ points.T, atol=1e-9)


def test_flat_holds_every_number_of_an_adapter_once():
    trained = library(3)
    whole = flat(trained)
    assert whole.shape == (3, 3 * 6 + 3 * 8 + 2 * 8 + 2 * 4)
    assert torch.allclose(
        whole.sum(1), sum(p.flatten(1).sum(1) for p in trained.parts.parameters())
    )


def test_a_merged_cluster_is_the_exact_average_of_its_changes():
    clusters = Clusters((0, 1, 0, 2, 1, 0))
    trained = library()
    changes = [trained.change(f"t{i}") for i in range(6)]
    merged = merge_clusters(trained, clusters)
    assert merged.names == ("cluster 0", "cluster 1", "cluster 2")
    assert merged.parts[0].at("0").down_TRI.shape == (3, 9, 6)
    for k in range(3):
        own = merged.change(f"cluster {k}")
        for name in ("0.weight", "2.weight"):
            wanted = torch.stack([changes[t][name] for t in clusters.members(k)]).mean(0)
            assert torch.allclose(own[name], wanted, atol=1e-12)
    apart = library().parts[0].at("0")
    down, up = (v[clusters.members(0)].mean(0) for v in (apart.down_TRI, apart.up_TRO))
    assert not torch.allclose(2.0 * up.T @ down, merged.change("cluster 0")["0.weight"], atol=0.1)


def test_rows_take_the_adapter_of_their_tasks_cluster():
    clusters = Clusters((0, 1, 0, 2, 1, 0))
    index_B = torch.tensor([4, -1, 3, 0])
    assert clusters.index(index_B).tolist() == [1, -1, 2, 0]
    merged = merge_clusters(library(), clusters, names=("x", "y", "z"))
    x = drawn(0, 4, 2, 6)
    with torch.no_grad():
        with merged.tasks(clusters.index(index_B)):
            y = merged(x)
        with merged.task("z"):
            assert torch.allclose(y[2], merged(x)[2])


def test_a_fresh_cluster_starts_as_the_base_with_the_rank_it_had():
    fresh = merge_clusters(library(), Clusters((0, 1, 0, 2, 1, 0)), fresh=True, seed=5)
    assert fresh.parts[0].at("0").down_TRI.shape == (3, 3, 6)
    assert fresh.parts[1].method == LoRA(2, 5.0, stabilised=True)
    x = drawn(0, 2, 2, 6)
    with fresh.task("cluster 1"):
        y = fresh(x)
    with fresh.without():
        assert torch.equal(fresh(x), y)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cluster(drawn(0, 3, 9), 4), "clusters is 4; give a whole number from 1 to 3"),
        (lambda: cluster(drawn(0, 3, 9), 2, quantile=1.0), "quantile is 1.0"),
        (lambda: cluster(drawn(0, 3, 9), 2, components=0), "components is 0"),
        (lambda: Clusters((0, 2)), "without gaps"),
        (lambda: Clusters(()), "without gaps"),
        (lambda: merge_clusters(library(), Clusters((0, 1))), "of 2 adapters and 6 adapters came"),
        (lambda: merge_clusters(library(2), Clusters((0, 1)), ("a",)), "1 names for 2 clusters"),
        (lambda: arrow_of(library(), top=0), "Arrow: top is 0"),
    ],
)
def test_wrong_use_is_answered(call, said):
    with pytest.raises(UsageError, match=said):
        call()
