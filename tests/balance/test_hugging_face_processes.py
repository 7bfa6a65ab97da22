"""The Hugging Face hook under torchrun: two processes make the updates of one.

This file is also the program of each process.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from polytask.balance import FAMO, Balancer, CAGrad, CoBa, Equal, MoCo, Uncertainty, hugging_face
from polytask.balance.hugging_face import FILE, BalancedTrainer
from polytask.errors import UsageError

TASKS = ("intent", "slots")
ROWS, BATCH, EPOCHS = 24, 3, 2  # per process: 4 batches in an epoch

METHODS: dict[str, Callable[[], Any]] = {
    "equal": Equal,
    "cagrad": CAGrad,
    "uncertainty": Uncertainty,
    "moco": MoCo,
    "famo": FAMO,
    "coba": partial(CoBa, warmup=2, history=3),
}
RUNS = [
    ("cagrad", {}),
    ("cagrad", {"accumulate": 2}),
    ("uncertainty", {"accumulate": 2}),
    ("moco", {}),
    ("famo", {}),
    ("coba", {"validate": 2}),
    ("cagrad", {"broken": True}),
]
ABSENT = [("cagrad", {"absent": True}), ("uncertainty", {"absent": True})]
"""By DistributedDataParallel's rule processes count alike: as micro-batches do in one process."""


class TwoHeads(transformers.PreTrainedModel):
    """An encoder of theirs in float64; `norm`: with batch normalisation."""

    config_class = BertConfig

    def __init__(self, config: BertConfig, norm: bool = False) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.norm = nn.BatchNorm1d(config.hidden_size) if norm else nn.Identity()
        self.intent = nn.Linear(config.hidden_size, 3)
        self.slots = nn.Linear(config.hidden_size, 4)
        self.post_init()
        self.double()

    def forward(self, input_ids: Tensor, intent_labels: Tensor, slot_labels: Tensor, scale: Tensor):
        hidden = self.bert(input_ids).last_hidden_state
        first = self.norm(hidden[:, 0]) * scale[:, None]
        losses = {
            "intent": mean_loss(self.intent(first), intent_labels),
            "slots": mean_loss(self.slots(hidden).flatten(0, 1), slot_labels.flatten()),
        }
        return {"losses": losses, "logits": first}


class Summed(TwoHeads):
    """The same as anybody trains it without a balancer."""

    def forward(self, input_ids: Tensor, intent_labels: Tensor, slot_labels: Tensor, scale: Tensor):
        losses = super().forward(input_ids, intent_labels, slot_labels, scale)["losses"]
        return {"loss": losses["intent"] + losses["slots"]}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor | None:
    return cross_entropy(logits, labels) if bool((labels != -100).any()) else None


def build(model: type[TwoHeads] = TwoHeads, norm: bool = False) -> TwoHeads:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model(config, norm)


class Sentences(Dataset):
    def __init__(self, absent: bool = False, broken: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(0, 20, (ROWS, 6), generator=generator)
        intents, slots = words[:, 0] % 3, words % 4
        scale = torch.ones(ROWS, dtype=torch.float64)
        if absent:
            intents[0:3] = -100  # all of the first process's first batch
            slots[3:6] = -100  # all of the second's: it has the other task
            intents[9:12] = slots[9:12] = -100  # the second process has no label at all
            intents[12:18] = slots[12:18] = -100  # nobody has
            intents[18:22] = -100  # some rows
        if broken:
            scale[4] = torch.nan  # in the second process
        self.columns = {
            "input_ids": words,
            "intent_labels": intents,
            "slot_labels": slots,
            "scale": scale,
        }

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class InOrder(BalancedTrainer):
    def _get_train_sampler(self, *dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class PlainInOrder(Trainer):
    _get_train_sampler = InOrder._get_train_sampler


def arguments(folder: str, **changes: Any) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": ROWS // 2,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "ddp_backend": "gloo",
        "disable_tqdm": True,
    }
    return TrainingArguments(folder, **(settings | changes))


def balancer_of(model: nn.Module, name: str, broken: bool = False) -> Balancer:
    parameters = model.bert.parameters()
    return Balancer(METHODS[name](), parameters, TASKS, nonfinite="skip" if broken else "stop")


def found(model: nn.Module, balancer: Balancer) -> dict[str, list[float]]:
    """Return the model's tensors, the method's own and its state, as numbers."""
    # What the engine found out about graphs is no number of the method.
    state = {n: v for n, v in balancer.state_dict().items() if not n.startswith("engine.")}
    every = model.state_dict() | state
    return {n: v.double().nan_to_num().flatten().tolist() for n, v in every.items()}


def train(
    name: str,
    accumulate: int = 1,
    validate: int | None = None,
    absent: bool = False,
    broken: bool = False,
) -> dict[str, list[float]]:
    """Return what a training on this process's rows leaves."""
    changes = {"eval_strategy": "steps", "eval_steps": validate} if validate else {}
    trainer = InOrder(
        model=build(),
        args=arguments("run", gradient_accumulation_steps=accumulate, **changes),
        train_dataset=Sentences(absent, broken),
        eval_dataset=Sentences(),
    )
    balancer = balancer_of(trainer.model, name, broken)
    trainer.balance(balancer)
    assert trainer.updates_per_epoch() == 4 // accumulate
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    used = [trainer.weights.get(task, 0.0) for task in TASKS]
    return found(trainer.model, balancer) | {"used": used, "logged": [] if broken else logged}


def by_hand(
    name: str,
    accumulate: int = 1,
    validate: int | None = None,
    absent: bool = False,
    broken: bool = False,
) -> dict[str, list[float]]:
    """Train on the joined batches in one process; return what that leaves.

    absent: by two micro-batches, each of the rows that one of the processes had.
    """
    model = build()
    balancer = balancer_of(model, name, broken)
    optimiser = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.1)
    rows, order = Sentences(absent, broken), list(range(ROWS))
    size = 2 * BATCH * accumulate
    updates = [order[i : i + size] for i in range(0, ROWS, size)] * EPOCHS
    weights: Any = {}
    logged = []
    for i, update in enumerate(updates):
        optimiser.zero_grad()
        parts = [update[:BATCH], update[BATCH:]] if absent else [update]
        logged.append(0.0)
        for part in parts:
            losses = model(**rows.batch(part))["losses"]
            shares = {n: None if x is None else x / len(parts) for n, x in losses.items()}
            logged[-1] += sum(float(x.detach()) for x in shares.values() if x is not None)
            weights = balancer.backward(shares, accumulate=part is not parts[-1])
        optimiser.step()
        with torch.no_grad():
            if name == "famo":
                balancer.observe(model(**rows.batch(update))["losses"])
            if validate and (i + 1) % validate == 0:
                balancer.observe(model(**Sentences().batch(order))["losses"])
    used = [weights.get(task, 0.0) for task in TASKS]
    return found(model, balancer) | {"used": used, "logged": [] if broken else logged}


def resumed() -> dict[str, Any]:
    """Return what a training leaves that was cut after an epoch, and who wrote its checkpoint."""
    wrote = []
    write = hugging_face.write_atomic
    hugging_face.write_atomic = lambda path, content: (
        wrote.append(path.name),
        write(path, content),
    )
    model = build()
    trainer = InOrder(
        model=model,
        args=arguments("kept", num_train_epochs=1, save_strategy="epoch"),
        train_dataset=Sentences(),
    )
    trainer.balance(balancer_of(model, "moco"))
    trainer.train()
    hugging_face.write_atomic = write
    other = build()
    nn.init.zeros_(other.intent.weight)  # all must come from the checkpoint
    trainer = InOrder(model=other, args=arguments("kept"), train_dataset=Sentences())
    trainer.balance(balancer_of(other, "moco"))
    trainer.train(resume_from_checkpoint=str(Path("kept", "checkpoint-4")))
    return found(other, trainer.balancer) | {"wrote": wrote}


def normalised(balanced: bool, **options: Any) -> dict[str, list[float]]:
    """Return what batch normalisation leaves, balanced by ones or not balanced."""
    model = build(TwoHeads if balanced else Summed, norm=True)
    trainer = (InOrder if balanced else PlainInOrder)(
        model=model,
        args=arguments("run", max_grad_norm=0.5, **options),
        train_dataset=Sentences(),
    )
    if balanced:
        trainer.balance(balancer_of(model, "equal"))
    trainer.train()
    return {n: v.double().flatten().tolist() for n, v in model.state_dict().items()}


def refusals() -> dict[str, str]:
    """Return what processes are told when they do wrong, in step with each other."""
    model = build()
    args = arguments("run", ddp_static_graph=True)
    trainer = InOrder(model=model, args=args, train_dataset=Sentences())
    trainer.balance(balancer_of(model, "cagrad"))
    try:
        trainer.train()
    except UsageError as error:
        return {"static": str(error)}
    return {}


@pytest.fixture(scope="module")
def pair(run_pair, tmp_path_factory) -> list[dict]:
    return run_pair(__file__, tmp_path_factory.mktemp("pair"))


def key(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *map(str, options)])


def assert_close(
    result: dict[str, list[float]], expected: dict[str, list[float]], at: float
) -> None:
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        got, wanted = (torch.tensor(v, dtype=torch.float64) for v in (result[name], values))
        torch.testing.assert_close(got, wanted, rtol=at, atol=at, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore:CAGrad")
@pytest.mark.parametrize(("name", "options"), [*RUNS, *ABSENT])
def test_two_processes_are_one(pair, name, options):
    expected = by_hand(name, **options)
    assert expected["intent.weight"] != build().intent.weight.flatten().tolist()
    logged = torch.tensor(expected.pop("logged"))
    # The log-variances are kept in float32, whatever the model is in.
    at = 1e-6 if name == "uncertainty" else 1e-10
    for result in pair:
        ours = result[key(name, options)]
        torch.testing.assert_close(torch.tensor(ours.pop("logged")), logged, rtol=1e-4, atol=1e-4)
        assert_close(ours, expected, at)
    assert pair[0][key(name, options)] == pair[1][key(name, options)]


def test_a_training_goes_on_from_one_checkpoint_in_every_process(pair):
    assert [result["resumed"].pop("wrote") for result in pair] == [[FILE], []]
    for result in pair:
        whole = {n: v for n, v in result["moco"].items() if n not in {"used", "logged"}}
        assert_close(result["resumed"], whole, 0.0)


@pytest.mark.parametrize("way", ["unused", "all used"])
def test_buffers_and_clipping_are_as_without_a_balancer(pair, way):
    for result in pair:
        assert_close(result[f"balanced {way}"], result["summed"], 1e-10)


def test_what_would_go_wrong_is_refused_in_every_process(pair):
    for result in pair:
        said = result["refusals"]["static"]
        assert "static_graph=True of DistributedDataParallel would do nothing" in said


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints what it logs
        result: dict[str, Any] = {key(n, options): train(n, **options) for n, options in RUNS}
        result |= {key(n, options): train(n, **options) for n, options in ABSENT}
        result |= {"resumed": resumed(), "summed": normalised(False)}
        result["balanced unused"] = normalised(True)  # find_unused_parameters, by their default
        result["balanced all used"] = normalised(True, ddp_find_unused_parameters=False)
        result["refusals"] = refusals()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
