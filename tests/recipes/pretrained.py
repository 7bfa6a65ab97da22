"""A small suite with a pretrained encoder: three kinds of tasks on a model of Hugging Face."""

import pytest
import torch
from torch import Tensor, nn

from polytask.suites import About, Pretrained, Stream, Suite
from polytask.suites.check import make_suite
from polytask.tasks import Multiclass, Regression, SequenceLabels, Task, TaskSet

transformers = pytest.importorskip("transformers")

WIDTH, WORDS = 16, 40
TASKS = TaskSet(
    [
        Task("kind", Multiclass(3)),
        Task("tags", SequenceLabels(4, ("w", "x", "y", "z"))),
        Task("sum", Regression()),
    ]
)
WHERE = {
    "projections": ("query", "value"),
    "outputs": ("attention.output.dense", "output.dense"),
    "words": ("word_embeddings",),
    "blocks": ("model.encoder.layer.0", "model.encoder.layer.1"),
    "feed-forward": ("output.dense",),
}


class Encoder(nn.Module):
    """A small model of Hugging Face with weights that are the same each time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            config = transformers.BertConfig(
                vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            self.model = transformers.BertModel(config, add_pooling_layer=False)
        self.width = WIDTH

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens_BL = inputs["tokens"]
        there_BL = (tokens_BL != 0).long()
        sequence = self.model(input_ids=tokens_BL, attention_mask=there_BL).last_hidden_state
        sequence = sequence[:, sequence.shape[1] - tokens_BL.shape[1] :]
        there = there_BL[..., None].to(sequence)
        return {"row": (sequence * there).sum(1) / there.sum(1), "sequence": sequence}


def stream(task: str, rows: int, seed: int) -> Stream:
    draw = torch.Generator().manual_seed(seed)
    longest = {"kind": 12, "tags": 5, "sum": 9}[task]
    lengths = torch.randint(2, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    tokens = torch.randint(2, WORDS, (rows, longest), generator=draw)
    there = torch.arange(longest) < lengths[:, None]
    tokens = tokens.masked_fill(~there, 0)
    targets = {
        "kind": tokens[:, 0] % 3,
        "tags": (tokens % 4).masked_fill(~there, -100),
        "sum": tokens[:, 1].float(),
    }
    ragged = ("tokens", task) if task == "tags" else ("tokens",)
    return Stream(task, {"tokens": tokens}, {task: targets[task]}, ragged, lengths)


def suite(pretrained: bool = True) -> Suite:
    def streams(rows: int, seed: int) -> list[Stream]:
        return [stream(name, rows, seed + k) for k, name in enumerate(TASKS.names)]

    return make_suite(
        name="small", tasks=TASKS, train=streams(24, 0), val=streams(12, 10), test=streams(12, 20),
        encoder=Encoder, width=WIDTH, about=About("", "", "", "", ""),
        pretrained=Pretrained(WHERE) if pretrained else None,
    )  # fmt: skip
