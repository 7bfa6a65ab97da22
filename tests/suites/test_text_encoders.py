"""Padding must not exist for the encoders of text: that is what most of these tests prove."""

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.suites.text_encoders import BiGRU, WordBag

WORDS = 50


def rows(*lengths: int, longest: int | None = None) -> Tensor:
    """Rows of random words, padded to the longest of them or to `longest`."""
    generator = torch.Generator().manual_seed(1)
    tokens_BL = torch.zeros(len(lengths), longest or max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens_BL[row, :length] = torch.randint(1, WORDS, (length,), generator=generator)
    return tokens_BL


def outputs(encoder: nn.Module, tokens_BL: Tensor) -> dict[str, Tensor]:
    found = encoder({"tokens": tokens_BL})
    return found if isinstance(found, dict) else {"row": found}


@pytest.fixture(params=[BiGRU, WordBag])
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param(WORDS).double().eval()


def test_features_have_the_promised_shapes(encoder: nn.Module) -> None:
    found = outputs(encoder, rows(3, 7))
    assert found["row"].shape == (2, encoder.width)
    if "sequence" in found:
        assert found["sequence"].shape == (2, 7, encoder.width)


def test_a_row_does_not_see_the_padding_of_its_batch(encoder: nn.Module) -> None:
    tokens_BL = rows(3, 1, 6, 4)
    alone = outputs(encoder, tokens_BL[:1, :3])
    for longest in (6, 7, 30):
        wide_BL = nn.functional.pad(tokens_BL, (0, longest - 6))
        together = outputs(encoder, wide_BL)
        torch.testing.assert_close(together["row"][:1], alone["row"], rtol=0, atol=1e-12)
        if "sequence" in alone:
            torch.testing.assert_close(
                together["sequence"][:1, :3], alone["sequence"], rtol=0, atol=1e-12
            )
            assert (together["sequence"][0, 3:] == 0).all()


def test_padding_gets_no_gradient(encoder: nn.Module) -> None:
    outputs(encoder, rows(2, 9))["row"].sum().backward()
    grad = encoder.embedding.weight.grad
    assert (grad[0] == 0).all()
    assert (grad != 0).any()


def test_every_word_matters_to_its_row(encoder: nn.Module) -> None:
    """Else a constant would pass the tests above."""
    tokens_BL = rows(5, 5)
    before = outputs(encoder, tokens_BL)["row"]
    for place in range(5):
        changed_BL = tokens_BL.clone()
        changed_BL[0, place] = tokens_BL[0, place] % (WORDS - 1) + 1
        after = outputs(encoder, changed_BL)["row"]
        assert not torch.allclose(before[0], after[0])
        assert torch.equal(before[1], after[1])


def test_a_batch_without_rows_passes(encoder: nn.Module) -> None:
    """A process may get no row of a short last batch."""
    found = outputs(encoder, torch.zeros(0, 1, dtype=torch.int64))
    assert found["row"].shape == (0, encoder.width)
    found["row"].sum().backward()


def test_bigru_is_torchs_bidirectional_gru_on_packed_rows() -> None:
    torch.manual_seed(0)
    ours = BiGRU(WORDS, embedding=12, hidden=8).eval()
    theirs = nn.GRU(12, 8, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, value in ours.forwards.named_parameters():
            getattr(theirs, name).copy_(value)
        for name, value in ours.backwards.named_parameters():
            getattr(theirs, f"{name}_reverse").copy_(value)
    lengths = (4, 9, 1, 9)
    tokens_BL = rows(*lengths)
    packed = nn.utils.rnn.pack_padded_sequence(
        ours.embedding(tokens_BL), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    expected_BLW, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours({"tokens": tokens_BL})
    torch.testing.assert_close(found["sequence"], expected_BLW, rtol=0, atol=1e-6)
    for row, length in enumerate(lengths):
        highest_W = expected_BLW[row, :length].amax(0)
        torch.testing.assert_close(found["row"][row], highest_W, rtol=0, atol=1e-6)


def test_word_bag_is_the_layer_of_mean_and_maximum() -> None:
    torch.manual_seed(0)
    bag = WordBag(WORDS).eval()
    tokens_BL = rows(3, 6)
    words_LE = bag.embedding(tokens_BL[0, :3])
    expected_W = bag.layer(torch.cat([words_LE.mean(0), words_LE.amax(0)])).relu()
    torch.testing.assert_close(bag({"tokens": tokens_BL})[0], expected_W, rtol=0, atol=1e-6)


def test_word_bag_of_padding_alone_is_finite() -> None:
    assert WordBag(WORDS)({"tokens": torch.zeros(2, 3, dtype=torch.int64)}).isfinite().all()


@pytest.mark.parametrize("encoder_class", [BiGRU, WordBag])
def test_dropout_works_in_training_alone(encoder_class: type[nn.Module]) -> None:
    torch.manual_seed(0)
    encoder, tokens_BL = encoder_class(WORDS), rows(4, 4)
    assert not torch.equal(outputs(encoder, tokens_BL)["row"], outputs(encoder, tokens_BL)["row"])
    encoder.eval()
    assert torch.equal(outputs(encoder, tokens_BL)["row"], outputs(encoder, tokens_BL)["row"])


@pytest.mark.parametrize("encoder_class", [BiGRU, WordBag])
def test_a_vocabulary_without_words_is_refused(encoder_class: type[nn.Module]) -> None:
    with pytest.raises(UsageError, match=r"at least padding and the unknown word.*got 1 and 64"):
        encoder_class(1, embedding=64)
