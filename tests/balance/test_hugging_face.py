"""The Hugging Face hook: real Trainers of a tiny BERT against loops written by hand."""

import gc
import importlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset
from transformers import BertConfig, BertModel, TrainerCallback, TrainingArguments

from polytask.balance import (
    DWA,
    FAMO,
    GLS,
    Balance,
    Balancer,
    CAGrad,
    CoBa,
    Equal,
    FlatRegions,
    MoCo,
    NashMTL,
    PCGrad,
    SampledRows,
    Uncertainty,
)
from polytask.balance import hugging_face as hook
from polytask.balance.hugging_face import FILE, BalancedTrainer
from polytask.errors import Diverged, MissingExtra, RunError, UsageError

transformers.logging.set_verbosity_error()

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TASKS = ("intent", "slots")
LR = 1e-2


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Every `train` collects garbage, among all that the import of transformers left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_precision_of_another_test():
    """Older releases hand the precision to accelerate by a variable of the environment."""
    yield
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_MIXED", "ACCELERATE_DYNAMO"))]:
        os.environ.pop(name)


class TwoHeads(transformers.PreTrainedModel):
    """An encoder of theirs, a label for the sentence and one for every word; -100 is missing."""

    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.intent = nn.Linear(config.hidden_size, 3)
        self.slots = nn.Linear(config.hidden_size, 4)
        self.post_init()

    def forward(self, input_ids: Tensor, intent_labels: Tensor, slot_labels: Tensor):
        hidden = self.bert(input_ids).last_hidden_state
        losses = {
            "intent": mean_loss(self.intent(hidden[:, 0]), intent_labels),
            "slots": mean_loss(self.slots(hidden).flatten(0, 1), slot_labels.flatten()),
        }
        return {"losses": losses, "logits": self.intent(hidden[:, 0])}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor | None:
    return cross_entropy(logits, labels) if bool((labels != -100).any()) else None


def build(model: type[TwoHeads] = TwoHeads) -> TwoHeads:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model(config)


class Sentences(Dataset):
    def __init__(self, rows: int = 24, absent: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.words = torch.randint(0, 20, (rows, 6), generator=generator)
        self.intents = self.words[:, 0] % 3
        self.slots = self.words % 4
        if absent:
            self.intents[:6] = -100  # a batch of 4, and half of the next
            self.intents[-4:] = self.slots[-4:] = -100  # a batch without any label

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        columns = {"input_ids": self.words, "intent_labels": self.intents}
        return {name: column[i] for name, column in (columns | {"slot_labels": self.slots}).items()}

    def batches(self, size: int = 4) -> list[dict[str, Tensor]]:
        rows = [self[i] for i in range(len(self))]
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [{n: torch.stack([row[n] for row in part]) for n in part[0]} for part in parts]


class InOrder(BalancedTrainer):
    """The same rows in the same order as a loop by hand."""

    def _get_train_sampler(self, *dataset: Dataset) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(settings | changes))


def trainer_of(
    model: nn.Module,
    method: Balance,
    folder: Path,
    rows: Dataset | None = None,
    epoch: int | None = None,
    kind: type[BalancedTrainer] = InOrder,
    callbacks: list[TrainerCallback] | None = None,
    eval_dataset: Dataset | None = None,
    **changes: Any,
) -> BalancedTrainer:
    trainer = kind(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=rows or Sentences(),
        eval_dataset=eval_dataset,
        callbacks=callbacks,
    )
    trainer.balance(balancer_of(model, method, epoch))
    return trainer


def balancer_of(model: nn.Module, method: Balance, epoch: int | None = None) -> Balancer:
    return Balancer(method, model.bert.parameters(), TASKS, epoch)


def by_hand(
    model: nn.Module,
    balancer: Balancer,
    batches: list[dict[str, Tensor]],
    epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    bf16: bool = False,
    linear: bool = False,
) -> dict[str, Tensor]:
    """Train as the Trainer would; return the model's tensors and the balancer's."""
    own = balancer.parameters()
    optimiser = torch.optim.AdamW(
        [{"params": list(model.parameters())}, {"params": own}], LR, weight_decay=0.0, fused=True
    )
    updates = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)] * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 1 - step / len(updates) if linear else 1.0
    )
    model.train()
    for update in updates:
        for batch in update:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = model(**batch)["losses"]
            losses = {n: None if x is None else x.float() / len(update) for n, x in losses.items()}
            balancer.backward(losses, accumulate=batch is not update[-1])
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if balancer.observes == "after":
            with torch.no_grad():
                balancer.observe(model(**update[0])["losses"])
    return tensors(model, balancer)


def tensors(model: nn.Module, balancer: Balancer) -> dict[str, Tensor]:
    return dict(model.state_dict()) | balancer.state_dict()


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    start = build().state_dict()
    still = {name for name, value in start.items() if torch.equal(value, mine[name])}
    # nobody reads the position ids; words of the second kind do not occur
    assert {name for name in still if start[name].is_floating_point()} == set()


@pytest.mark.parametrize("method", [Equal, GLS, PCGrad, NashMTL, MoCo, Uncertainty])
def test_a_training_equals_a_loop_by_hand_bit_for_bit(tmp_path, method):
    model, other = build(), build()
    trainer = trainer_of(model, method(), tmp_path)
    result = trainer.train()
    expected = by_hand(other, balancer_of(other, method()), Sentences().batches())
    assert_same(tensors(model, trainer.balancer), expected)
    assert trainer.balancer.step == result.global_step == 12


@pytest.mark.parametrize("method", [PCGrad, MoCo, Equal])
def test_accumulation_clipping_bf16_and_schedules_stay_the_trainers(tmp_path, method):
    # 7 batches in twos: the epoch's last update has one batch
    rows, model, other = Sentences(28), build(), build()
    trainer = trainer_of(
        model,
        method(),
        tmp_path,
        rows,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        bf16=True,
        lr_scheduler_type="linear",
    )
    trainer.train()
    options = {"accumulate": 2, "clip": 0.5, "bf16": True, "linear": True}
    expected = by_hand(other, balancer_of(other, method()), rows.batches(), **options)
    assert_same(tensors(model, trainer.balancer), expected)
    assert trainer.balancer.step == trainer.state.global_step == 8


@pytest.mark.parametrize(
    "method",
    [
        PCGrad,
        NashMTL,
        Uncertainty,
        partial(SampledRows, PCGrad(), fraction=1.0),
        partial(FlatRegions, PCGrad()),
    ],
)
def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path, method):
    parts, whole = build(), build()
    trainers = [
        trainer_of(parts, method(), tmp_path, gradient_accumulation_steps=3),
        trainer_of(whole, method(), tmp_path, per_device_train_batch_size=12),
    ]
    for trainer in trainers:
        trainer.train()
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert [trainer.balancer.step for trainer in trainers] == [4, 4]


@pytest.mark.parametrize("method", [PCGrad, Uncertainty])
def test_absent_tasks_are_left_out(tmp_path, method):
    rows, model, other, seen = Sentences(absent=True), build(), build(), []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            seen.append(set(trainer.weights))

    trainer = trainer_of(model, method(), tmp_path, rows, callbacks=[See()])
    trainer.train()
    expected = by_hand(other, balancer_of(other, method()), rows.batches())
    assert_same(tensors(model, trainer.balancer), expected)
    assert seen == [{"slots"}, set(TASKS), set(TASKS), set(TASKS), set(TASKS), set()] * 2


class Stop(TrainerCallback):
    """Ends the training after an update's checkpoint, as a kill would."""

    def on_save(self, args, state, control, **others):
        raise KeyError("killed")


@pytest.mark.parametrize("method", [PCGrad, MoCo, NashMTL, Uncertainty, FAMO])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, method):
    options = {"lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 8}
    one = build()
    whole = trainer_of(one, method(), tmp_path / "whole", kind=BalancedTrainer, **options)
    whole.train()
    folder = tmp_path / "killed"
    killed = trainer_of(
        build(), method(), folder, kind=BalancedTrainer, callbacks=[Stop()], **options
    )
    with pytest.raises(KeyError, match="killed"):
        killed.train()

    model = build()
    nn.init.zeros_(model.intent.weight)  # all must come from the checkpoint
    resumed = trainer_of(model, method(), folder, kind=BalancedTrainer, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(tensors(model, resumed.balancer), tensors(one, whole.balancer))
    assert resumed.balancer.step == 12


def test_a_checkpoint_holds_the_balancer_as_safetensors(tmp_path):
    model = build()
    trainer = trainer_of(model, MoCo(), tmp_path, save_strategy="epoch")
    trainer.train()
    path = tmp_path / "checkpoint-12" / FILE
    saved, expected = safetensors.torch.load_file(path), trainer.balancer.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["tasks"]) == list(TASKS)

    swapped = trainer_of(build(), MoCo(), tmp_path)
    swapped.balance(Balancer(MoCo(), swapped.model.bert.parameters(), TASKS[::-1]))
    with pytest.raises(RunError, match="the tasks intent, slots; this one has slots, intent"):
        swapped.train(resume_from_checkpoint=str(path.parent))
    path.unlink()
    with pytest.raises(RunError, match=rf"has no {FILE}: it was saved without a balancer"):
        trainer_of(build(), MoCo(), tmp_path).train(resume_from_checkpoint=str(path.parent))


def test_weights_are_logged_beside_the_loss(tmp_path):
    model, other = build(), build()
    trainer = trainer_of(
        model,
        GLS(),
        tmp_path,
        eval_dataset=Sentences(8),
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="epoch",
        num_train_epochs=1,
    )
    trainer.train()
    balancer = balancer_of(other, GLS())
    optimiser = torch.optim.AdamW(other.parameters(), LR, weight_decay=0.0, fused=True)
    expected = []
    for batch in Sentences().batches():
        losses = other(**batch)["losses"]
        weights = balancer.backward(losses)
        optimiser.step()
        optimiser.zero_grad()
        sums = {"loss": float(sum(loss.detach() for loss in losses.values()))}
        expected.append(sums | {f"weight/{task}": weights[task] for task in TASKS})
    rows = [
        {name: row[name] for name in expected[0]}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    assert rows == [pytest.approx(row, rel=1e-5) for row in expected]
    (evaluation,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert not any(name.startswith("weight/") for name in evaluation)
    model.eval()
    with torch.no_grad():
        (batch,) = Sentences(8).batches(8)
        last = float(sum(model(**batch)["losses"].values()))
    assert evaluation["eval_loss"] == pytest.approx(last, rel=1e-5)


def test_an_epoch_method_learns_the_epochs_length(tmp_path):
    rows, model, other = Sentences(26), build(), build()
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 4}
    trainer = trainer_of(model, Equal(), tmp_path, rows, **options)
    assert trainer.updates_per_epoch() == 2  # 7 batches, the last of two rows
    trainer.balance(balancer_of(model, DWA(), trainer.updates_per_epoch()))
    trainer.train()
    assert trainer.state.global_step == 8
    expected = by_hand(other, balancer_of(other, DWA(), 2), rows.batches(), epochs=4, accumulate=4)
    assert_same(tensors(model, trainer.balancer), expected)
    assert max(trainer.weights.values()) != pytest.approx(1)
    dropped = trainer_of(model, Equal(), tmp_path, rows, dataloader_drop_last=True)
    assert dropped.updates_per_epoch() == 6

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows)

    stream = trainer_of(model, Equal(), tmp_path, Stream(), max_steps=2)
    with pytest.raises(UsageError, match="length is unknown"):
        stream.updates_per_epoch()


def test_famo_sees_each_batch_again_after_its_update(tmp_path):
    model, other = build(), build()
    trainer = trainer_of(model, FAMO(), tmp_path)
    trainer.train()
    expected = by_hand(other, balancer_of(other, FAMO()), Sentences().batches())
    assert_same(tensors(model, trainer.balancer), expected)


@pytest.mark.filterwarnings("ignore:FAMO. a gradient is not finite")
def test_famo_is_shown_nothing_after_an_update_that_was_left_out(tmp_path):
    class Broken(TwoHeads):
        def forward(self, input_ids, intent_labels, slot_labels):
            output = super().forward(input_ids, intent_labels, slot_labels)
            if torch.is_grad_enabled() and torch.equal(
                input_ids, Sentences().batches()[2]["input_ids"]
            ):
                # a loss as it is, and a gradient of NaN
                output["losses"]["intent"] += (self.bert.embeddings.LayerNorm.bias * 0).sqrt().sum()
            return output

    model, other = build(Broken), build(Broken)

    def made(model):
        return Balancer(FAMO(), model.bert.parameters(), TASKS, nonfinite="skip")

    trainer = trainer_of(model, FAMO(), tmp_path, num_train_epochs=1)
    trainer.balance(made(model))
    trainer.train()
    balancer = made(other)
    optimiser = torch.optim.AdamW(other.parameters(), LR, weight_decay=0.0, fused=True)
    for i, batch in enumerate(Sentences().batches()):
        weights = balancer.backward(other(**batch)["losses"])
        optimiser.step()
        optimiser.zero_grad()
        assert len(weights) == (0 if i == 2 else 2)
        if weights:
            with torch.no_grad():
                balancer.observe(other(**batch)["losses"])
    assert_same(tensors(model, trainer.balancer), tensors(other, balancer))


def test_a_method_that_samples_rows_gets_the_losses_of_those_rows(tmp_path):
    model, other = build(), build()
    method = SampledRows(PCGrad(), fraction=0.5)
    trainer = trainer_of(model, method, tmp_path)
    trainer.train()
    balancer = balancer_of(other, method)
    optimiser = torch.optim.AdamW(other.parameters(), LR, weight_decay=0.0, fused=True)
    other.train()
    for batch in Sentences().batches() * 2:

        def again(rows, tasks, batch=batch):
            return other(**{name: rows(column) for name, column in batch.items()})["losses"]

        balancer.backward(other(**batch)["losses"], again=again)
        optimiser.step()
        optimiser.zero_grad()
    assert_same(tensors(model, trainer.balancer), tensors(other, balancer))


def test_coba_sees_the_means_of_every_evaluation(tmp_path):
    model, shown = build(), []
    trainer = trainer_of(
        model,
        CoBa(warmup=2, history=4),
        tmp_path,
        eval_dataset=Sentences(16, absent=True),
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=3,
    )
    observe = trainer.balancer.observe
    trainer.balancer.observe = lambda losses: (shown.append(losses), observe(losses))
    trainer.train()
    trainer.evaluate()  # after the training: nobody is shown anything
    assert int(trainer.balancer.state["seen"]) == len(shown) == 4
    weights = trainer.balancer.state["weights_T"]
    assert not torch.equal(weights, torch.full_like(weights, 0.5))
    model.eval()
    with torch.no_grad():
        parts = [model(**batch)["losses"] for batch in Sentences(16, absent=True).batches()]
    for task in TASKS:
        values = [float(part[task]) for part in parts if part[task] is not None]
        assert float(shown[-1][task]) == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_a_trainer_of_ones_own_can_compute_the_losses(tmp_path):
    class Plain(TwoHeads):
        def forward(self, input_ids):
            hidden = self.bert(input_ids).last_hidden_state
            return {"intent": self.intent(hidden[:, 0]), "slots": self.slots(hidden)}

    class Mine(InOrder):
        def compute_losses(self, model, inputs, return_outputs=False):
            outputs = model(inputs["input_ids"])
            losses = {
                "intent": mean_loss(outputs["intent"], inputs["intent_labels"]),
                "slots": mean_loss(outputs["slots"].flatten(0, 1), inputs["slot_labels"].flatten()),
            }
            return (losses, outputs) if return_outputs else losses

    model, other = build(Plain), build()
    trainer = trainer_of(
        model, PCGrad(), tmp_path, kind=Mine, remove_unused_columns=False, label_names=[]
    )
    trainer.train()
    expected = by_hand(other, balancer_of(other, PCGrad()), Sentences().batches())
    assert_same(tensors(model, trainer.balancer), expected)


@pytest.mark.filterwarnings("ignore:.*TensorFloat32 tensor cores")
def test_a_compiled_model_is_balanced_as_it_is(tmp_path):
    class Labelled(TwoHeads):
        """Without a look at the labels, which would break the graph in pieces."""

        def forward(self, input_ids, intent_labels, slot_labels):
            hidden = self.bert(input_ids).last_hidden_state
            slots = self.slots(hidden).flatten(0, 1)
            losses = {
                "intent": cross_entropy(self.intent(hidden[:, 0]), intent_labels),
                "slots": cross_entropy(slots, slot_labels.flatten()),
            }
            return {"losses": losses}

    torch.compiler.reset()
    model, other = build(Labelled), build()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "num_train_epochs": 1}
    trainer = trainer_of(model, CAGrad(), tmp_path, **options)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    expected = by_hand(other, balancer_of(other, CAGrad()), Sentences().batches(), epochs=1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_a_second_training_goes_on_with_the_same_balancer(tmp_path):
    model, other = build(), build()
    trainer = trainer_of(model, FAMO(), tmp_path, num_train_epochs=1)
    trainer.train()
    trainer.train()
    expected = by_hand(other, balancer_of(other, FAMO()), Sentences().batches())
    assert_same(tensors(model, trainer.balancer), expected)


def test_trained_weights_beside_ones_own_schedule_belong_into_ones_own_optimiser(tmp_path):
    def trainer_with(model: nn.Module, balancer: Balancer, own: list[nn.Parameter]):
        groups = [{"params": list(model.parameters())}, {"params": own}]
        optimiser = torch.optim.AdamW(groups[: 1 + bool(own)], LR, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
        trainer = InOrder(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Sentences(),
            optimizers=(optimiser, schedule),
        )
        trainer.balance(balancer)
        return trainer

    model, other = build(), build()
    balancer = balancer_of(model, Uncertainty())
    with pytest.raises(UsageError, match=r"Uncertainty has trained .* optimizers=\(\.\.\.\)"):
        trainer_with(model, balancer, []).train()
    trainer_with(model, balancer, balancer.parameters()).train()
    expected = by_hand(other, balancer_of(other, Uncertainty()), Sentences().batches())
    assert_same(tensors(model, balancer), expected)


def wrong(change: Callable[[dict[str, Tensor]], Any]) -> type[TwoHeads]:
    class Wrong(TwoHeads):
        def forward(self, input_ids, intent_labels, slot_labels):
            output = super().forward(input_ids, intent_labels, slot_labels)
            return output | {"losses": change(output["losses"])}

    return Wrong


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda x: None, UsageError, r"Wrong's output has no entry 'losses'; .* compute_losses"),
        (lambda x: sum(x.values()), UsageError, r"compute_losses must return a dict .* a Tensor"),
        (lambda x: x | {"slots": 1.0}, UsageError, r"its entry 'slots' is a float"),
        (lambda x: {"slot": x["slots"]}, UsageError, r"Did you mean 'slots'"),
        (lambda x: x | {"slots": x["slots"].detach()}, UsageError, r"'slots' has no graph"),
        (lambda x: x | {"slots": x["slots"] * torch.nan}, Diverged, r"'slots' is nan"),
    ],
)
def test_wrong_losses_are_met_with_what_to_do(tmp_path, change, error, said):
    with pytest.raises(error, match=said):
        trainer_of(build(wrong(change)), PCGrad(), tmp_path).train()


def test_training_without_a_balancer_says_what_to_call(tmp_path):
    trainer = InOrder(model=build(), args=arguments(tmp_path), train_dataset=Sentences())
    with pytest.raises(UsageError, match=r"call trainer\.balance\(Balancer\(\.\.\.\)\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_gpu": 4}, "on one device per process; this one has 4. Start with torchrun"),
        ({"fp16": True}, "take bf16=True"),
        ({"is_deepspeed_enabled": True}, "without DeepSpeed and FSDP"),
        ({"is_fsdp_enabled": True}, "without DeepSpeed and FSDP"),
        ({"label_smoother": object()}, "leave out label_smoothing_factor"),
        ({"compute_loss_func": print}, "leave out label_smoothing_factor and compute_loss_func"),
    ],
)
def test_what_would_go_wrong_is_refused(changes, said):
    arguments = {"n_gpu": 0, "fp16": False}
    switches = dict.fromkeys(("is_deepspeed_enabled", "is_fsdp_enabled"), False)
    nothing = dict.fromkeys(("label_smoother", "compute_loss_func"))
    both = arguments | switches | nothing | changes
    trainer = SimpleNamespace(args=SimpleNamespace(**both), **both)
    with pytest.raises(UsageError, match=said):
        hook.BalanceMixin.balance(trainer, None)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_the_page_on_the_trainer_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "ecosystem.md"
    (block,) = [b for b in PYTHON.findall(page.read_text()) if "import BalancedTrainer" in b]
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    exec(compile(block, "ecosystem.md", "exec"), names)
    assert names["trainer"].balancer.step == names["trainer"].state.global_step == 2
    assert set(names["trainer"].weights) == {"intent", "topic"}


def test_without_transformers_the_error_names_the_command(monkeypatch):
    import_module = importlib.import_module

    def absent(name: str) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    spec = importlib.util.spec_from_file_location("alone", hook.__file__)
    with pytest.raises(MissingExtra, match=r"pip install 'polytask\[transformers\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
