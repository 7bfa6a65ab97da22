"""The transformer in windows: attention against a loop over tokens, rows apart, adapters on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytask.adapt import LoRA, Where, adapt
from polytask.errors import UsageError
from polytask.suites.swin import Block, Merge, Swin

MEAN, SCALE = (100.0, 110.0, 120.0), (70.0, 71.0, 72.0)
ENDS = {"map": (5, 24, 40), "row": (5,), "levels": (18, 12, 20)}
"""What each gives a picture of 24 x 40: two stages, in 12 x 20 and 6 x 10 tokens."""


def pictures(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def made(**settings: object) -> Swin:
    torch.manual_seed(0)
    sizes = {"patch": 2, "dim": 6, "depths": (2, 2), "head": 3, "window": 4, "width": 5}
    return Swin(MEAN, SCALE, **(sizes | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", ENDS)
def test_each_end_has_its_shape_and_says_how_wide_it_is(ends: str) -> None:
    encoder = made(ends=ends)
    features = encoder(pictures(2, 3, 24, 40))
    assert {name: tuple(x.shape) for name, x in features.items()} == {ends: (2, *ENDS[ends])}
    assert encoder.width == ENDS[ends][0]


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize(
    ("size", "sides", "shift"),
    [
        ((8, 4), (4, 4), (2, 0)),  # one window has nothing to be shifted to
        ((6, 9), (3, 3), (1, 1)),  # as even as can be
        ((5, 7), (3, 4), (1, 2)),  # padded
        ((3, 2), (3, 2), (0, 0)),
    ],
)
def test_a_token_attends_to_its_windows_tokens_alone(
    shifts: bool, size: tuple[int, int], sides: tuple[int, int], shift: tuple[int, int]
) -> None:
    """Against a loop over all tokens of the picture, in float64."""
    torch.manual_seed(0)
    dim, heads, window = 6, 2, 4
    block = Block(dim, heads, window, 2, shifts).double()
    tokens = torch.randn(2, *size, dim, dtype=torch.float64)
    found = block._attend(tokens)

    def window_of(at: tuple[int, int]) -> tuple[int, ...]:
        moved = shift if shifts else (0, 0)
        return tuple((n - by) // side for n, by, side in zip(at, moved, sides, strict=True))

    attention, table = block.attn, block.attn.places.table_AYX
    places = [(i, j) for i in range(size[0]) for j in range(size[1])]
    for row, given in enumerate(tokens):
        query, key, value = attention.qkv(given).unflatten(-1, (3, heads, -1)).unbind(2)
        for at in places:
            near = [other for other in places if window_of(other) == window_of(at)]
            mixed = []
            for head in range(heads):
                scores = torch.stack(
                    [
                        query[at][head] @ key[other][head] / (dim // heads) ** 0.5
                        + table[head, at[0] - other[0] + 3, at[1] - other[1] + 3]
                        for other in near
                    ]
                )
                values = torch.stack([value[other][head] for other in near])
                mixed.append(scores.softmax(0) @ values)
            wanted = attention.proj(torch.cat(mixed))
            torch.testing.assert_close(found[row][at], wanted)


def test_four_neighbours_become_one_token() -> None:
    merge, tokens = Merge(6).double(), torch.randn(1, 4, 6, 3, dtype=torch.float64)
    found = merge(tokens)
    assert found.shape == (1, 2, 3, 6)
    square = torch.cat([tokens[0, 2 + i, 4 + j] for i in (0, 1) for j in (0, 1)])
    torch.testing.assert_close(found[0, 1, 2], merge.reduction(merge.norm(square)))


def test_a_map_has_each_tokens_square_where_its_patch_is() -> None:
    encoder = made(depths=(1,), patch=4)
    with torch.no_grad():
        encoder.ends[0].weight.zero_()
        encoder.ends[0].bias.copy_(torch.arange(20.0))
    square = encoder(pictures(1, 3, 8, 12))["map"][0, 2]
    # channel 2's square is 8 9 / 10 11 in every patch, each value two pixels wide
    fine = torch.tensor([[8.0, 9.0], [10.0, 11.0]]).repeat(2, 3)[None, None]
    expected = nn.functional.interpolate(fine, size=(8, 12), mode="bilinear")
    torch.testing.assert_close(square, expected[0, 0])


def test_rows_do_not_see_each_other_and_pixels_far_away_do() -> None:
    encoder, both = made(), pictures(2, 3, 24, 40)
    together = encoder(both)["map"]
    torch.testing.assert_close(together[:1], encoder(both[:1])["map"])
    changed = both.clone()
    changed[0, :, :2, :2] = 255 - changed[0, :, :2, :2]
    moved = encoder(changed)["map"]
    assert torch.equal(moved[1], together[1])
    # Shifted windows and merging carry it beyond the windows of the first stage, 8 pixels wide.
    assert (moved[0, :, 16, 16] != together[0, :, 16, 16]).any()


@pytest.mark.parametrize("ends", ENDS)
def test_all_parameters_learn(ends: str) -> None:
    encoder = made(ends=ends)
    encoder(pictures(2, 3, 24, 40))[ends].pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_all_ends_stand_on_the_same_weights() -> None:
    names = {
        ends: {n for n, _ in made(ends=ends).named_parameters() if not n.startswith("ends.")}
        for ends in ENDS
    }
    assert names["map"] == names["row"] == names["levels"]
    assert not list(made(ends="levels").ends.parameters())


def test_layers_have_the_names_that_adapters_ask_for() -> None:
    def named(*names: str) -> list[str]:
        return [layer.path for layer in Where(names).layers(made(), LoRA(2))]

    assert named("stages.1.*.fc2") == [f"stages.1.blocks.{j}.mlp.fc2" for j in (0, 1)]
    assert named("proj") == [f"stages.{i}.blocks.{j}.attn.proj" for i in (0, 1) for j in (0, 1)]
    assert len(named("qkv", "fc1")) == 8
    assert named("reduction") == ["stages.1.merge.reduction"]


@pytest.mark.parametrize("ends", ["map", "levels"])
def test_adapted_rows_of_several_tasks_are_those_of_each_apart(ends: str) -> None:
    """Windows are rows of their own at `qkv` and `proj`; 10 x 10 tokens are padded, 5 x 5 too."""
    where = ("qkv", "proj", "fc1", "fc2", "reduction")
    encoder, both = made(ends=ends, window=3).double(), pictures(5, 3, 20, 20)
    with torch.no_grad():
        plain = encoder(both)[ends]
    adapted = adapt(encoder, LoRA(2), ("a", "b"), where=where)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "up_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    tasks = ("b", None, "a", "b", "a")
    with torch.no_grad():
        with adapted.tasks(adapted.index(tasks)):
            mixed = encoder(both)[ends]
        for row, task in enumerate(tasks):
            if task is None:
                assert torch.equal(mixed[row], plain[row])
                continue
            with adapted.task(task):
                alone = encoder(both[row : row + 1])[ends]
            torch.testing.assert_close(mixed[row], alone[0])
            assert not torch.allclose(mixed[row], plain[row])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 7}, "dim a multiple of head; got 2, [2, 2], 3, 4, 4, 5 and 7"),
        ({"depths": ()}, "must be at least 1"),
        ({"depths": (2, 0)}, "must be at least 1"),
        ({"window": 0}, "must be at least 1"),
        ({"patch": 3}, "a map needs an even patch; got 3"),
    ],
)
def test_wrong_sizes_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(**settings)
    assert said in str(caught.value)


def test_other_pictures_and_statistics_are_refused() -> None:
    for size in ((8, 10), (2, 8), (0, 8)):
        with pytest.raises(UsageError, match=r"must be multiples of 4; got \(2, 3, "):
            made()(pictures(2, 3, *size))
    with pytest.raises(UsageError, match="Swin: give one mean and one scale > 0 per channel"):
        Swin(MEAN, (1.0,))
