"""The small transformer: shapes, rows apart, stages as told, errors in words."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.suites.vit import ViT

MEAN, SCALE = (100.0, 110.0, 120.0), (70.0, 71.0, 72.0)


def pictures(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def made(**settings: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"patch": 4, "dim": 12, "depth": 3, "heads": 3, "width": 5}
    return ViT(MEAN, SCALE, (8, 12), **(sizes | settings))  # type: ignore[arg-type]


def test_features_of_pixels_or_of_the_picture() -> None:
    assert made()(pictures(2, 3, 8, 12))["map"].shape == (2, 5, 8, 12)
    assert made(ends="row")(pictures(2, 3, 8, 12))["row"].shape == (2, 5)


def test_a_map_has_each_tokens_square_where_its_patch_is() -> None:
    encoder = made(depth=1)
    with torch.no_grad():
        encoder.last.weight.zero_()
        encoder.last.bias.copy_(torch.arange(20.0))
    square = encoder(pictures(1, 3, 8, 12))["map"][0, 2]
    # channel 2's square is 8 9 / 10 11 in every patch, each value two pixels wide
    fine = torch.tensor([[8.0, 9.0], [10.0, 11.0]]).repeat(2, 3)[None, None]
    expected = torch.nn.functional.interpolate(fine, size=(8, 12), mode="bilinear")
    torch.testing.assert_close(square, expected[0, 0])


def test_rows_do_not_see_each_other_and_every_token_sees_all() -> None:
    encoder, both = made(), pictures(2, 3, 8, 12)
    together = encoder(both)["map"]
    torch.testing.assert_close(together[:1], encoder(both[:1])["map"])
    changed = both.clone()
    changed[0, :, 0, 0] = 255 - changed[0, :, 0, 0]
    assert (encoder(changed)["map"][0] != together[0]).any(0).all()
    assert torch.equal(encoder(changed)["map"][1], together[1])


@pytest.mark.parametrize("ends", ["map", "row"])
def test_its_stages_are_as_told_and_end_as_its_features(ends: str) -> None:
    encoder, picture = made(ends=ends), pictures(2, 3, 8, 12)
    stages = encoder.stages(picture)
    assert encoder.stage_channels == ((12, 12),) * 3
    assert all(u.shape == p.shape == (2, 12, 2, 3) for u, p in stages)
    assert encoder.scales[-1] == 2
    finished = encoder.finish(stages[-1][1], (8, 12))[ends]
    torch.testing.assert_close(finished, encoder(picture)[ends])
    assert made(depth=6).scales == (1, 3, 5)


def test_all_parameters_learn() -> None:
    encoder = made()
    encoder(pictures(2, 3, 8, 12))["map"].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch": 5}, r"multiples of the patch; got \(8, 12\) and patches of 5"),
        ({"patch": 1}, "a map needs an even patch; got 1"),
        ({"dim": 13}, "dim a multiple of heads; got 3, 3, 4, 5 and 13"),
        ({"depth": 0}, "must be at least 1"),
    ],
)
def test_wrong_sizes_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(**settings)


def test_other_pictures_and_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match=r"made for pictures of 8x12; got \(2, 3, 12, 8\)"):
        made()(pictures(2, 3, 12, 8))
    with pytest.raises(UsageError, match="one mean and one scale > 0 per channel"):
        ViT(MEAN, (1.0,), (8, 8))
