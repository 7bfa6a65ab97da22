"""The U-Net gives each pixel features of its own surroundings, at any size of picture."""

import pytest
import torch

from polytask.errors import UsageError
from polytask.suites.dense_encoders import UNet

MEAN, SCALE = (100.0, 110.0, 120.0), (70.0, 71.0, 72.0)


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(("height", "width"), [(96, 128), (90, 120), (17, 33), (2, 5)])
def test_features_have_the_size_of_the_picture(height: int, width: int) -> None:
    encoder = UNet(MEAN, SCALE, (8, 16, 24, 32))
    assert encoder.width == 8
    found = encoder(pictures(2, 3, height, width))
    assert set(found) == {"map"}
    assert found["map"].shape == (2, 8, height, width)
    assert found["map"].isfinite().all()


def test_the_default_is_small() -> None:
    assert 1e5 < sum(p.numel() for p in UNet(MEAN, SCALE).parameters()) < 5e5


def test_bytes_are_normalised_inside() -> None:
    """Bytes and the same numbers as floats, normalised outside, give the same features."""
    torch.manual_seed(0)
    inside, outside = UNet(MEAN, SCALE, (8, 16)), UNet((0.0,) * 3, (1.0,) * 3, (8, 16))
    parameters = {k: v for k, v in inside.state_dict().items() if not k.endswith("_C11")}
    outside.load_state_dict(parameters, strict=False)
    picture = pictures(1, 3, 16, 16)
    shape = (3, 1, 1)
    by_hand = (picture.float() - torch.tensor(MEAN).view(shape)) / torch.tensor(SCALE).view(shape)
    torch.testing.assert_close(inside(picture)["map"], outside(by_hand)["map"])


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    encoder, both = UNet(MEAN, SCALE, (8, 16)), pictures(2, 3, 24, 32)
    torch.testing.assert_close(encoder(both)["map"][:1], encoder(both[:1])["map"])


def test_a_pixel_changes_the_features_around_it_alone() -> None:
    """A step up that joined the wrong places would carry the change elsewhere."""
    torch.manual_seed(0)
    encoder = UNet((0.0,), (1.0,), (8, 16))
    for module in encoder.modules():
        if isinstance(module, torch.nn.Sequential) and isinstance(module[1], torch.nn.GroupNorm):
            module[1] = torch.nn.Identity()  # it mixes all places, by design
    picture = torch.rand(1, 1, 64, 64)
    dotted = picture.clone()
    dotted[..., 20, 40] += 10.0
    change_HW = (encoder(dotted)["map"] - encoder(picture)["map"]).abs().sum((0, 1))
    rows, columns = change_HW.nonzero().T
    assert int((rows - 20).abs().max()) <= 20
    assert int((columns - 40).abs().max()) <= 20
    row, column = divmod(int(change_HW.argmax()), 64)
    assert abs(row - 20) <= 3
    assert abs(column - 40) <= 3


def test_all_parameters_learn() -> None:
    encoder = UNet(MEAN, SCALE)
    encoder(pictures(2, 3, 32, 32))["map"].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_statistics_are_saved_but_not_trained() -> None:
    encoder = UNet(MEAN, SCALE)
    assert {"mean_C11", "scale_C11"} <= set(encoder.state_dict())
    assert not {"mean_C11", "scale_C11"} & {name for name, _ in encoder.named_parameters()}


def test_its_stages_are_as_told_and_end_as_its_features() -> None:
    encoder, picture = UNet(MEAN, SCALE, (8, 16, 24)), pictures(2, 3, 21, 34)
    stages = encoder.stages(picture)
    assert encoder.stage_channels == ((8, 8), (16, 16), (24, 24), (40, 16), (24, 8))
    assert [(u.shape[1], p.shape[1]) for u, p in stages] == [*encoder.stage_channels]
    assert all(u.shape[2:] == p.shape[2:] for u, p in stages)
    assert [tuple(p.shape[2:]) for _, p in stages] == [(11, 17), (6, 9), (3, 5), (6, 9), (11, 17)]
    assert encoder.scales == (2, 3, 4)
    finished = encoder.finish(stages[-1][1], picture.shape[-2:])
    assert torch.equal(finished["map"], encoder(picture)["map"])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 0.0, 1.0)])
def test_bad_statistics_are_refused(scale: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="one mean and one scale > 0 per channel"):
        UNet(MEAN, scale)


@pytest.mark.parametrize("channels", [(16,), (16, 20), (0, 8)])
def test_bad_channels_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least two multiples of 8"):
        UNet(MEAN, SCALE, channels)
