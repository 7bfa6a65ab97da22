"""The engine: rows, contexts, layers of every shape, folding, growing, compiling, two processes."""

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polytask.adapt import SSF, At, BitFit, DoRA, LoRA, PrefixTuning, PromptTuning, Where, adapt
from polytask.errors import RunError, UsageError

TASKS = ("a", "b", "c")


class Block(nn.Module):
    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(wide, wide), nn.Linear(wide, wide)
        self.norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.q_proj(self.norm(x))) * self.v_proj(x)


class Model(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def moved(adapted):
    """Return it with adapters that have been trained a little."""
    generator = torch.Generator().manual_seed(1)
    for p in adapted.parts.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator).to(p)
    return adapted


def paths(adapted) -> list[str]:
    return [layer.path for layer in adapted.layers()]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("q_proj", ["blocks.0.q_proj", "blocks.1.q_proj", "blocks.2.q_proj"]),
        ("blocks.1.*_proj", ["blocks.1.q_proj", "blocks.1.v_proj"]),
        (("embed", "0.v_proj"), ["embed", "blocks.0.v_proj"]),
        (Where(("q_proj",), blocks=(0, -1)), ["blocks.0.q_proj", "blocks.2.q_proj"]),
        (Where(kinds=("linear",), without=("*_proj",)), ["embed"]),
        (Where(regex=r"blocks\.[02]\.v_proj"), ["blocks.0.v_proj", "blocks.2.v_proj"]),
        (Where(types=("Linear",), blocks=(1,)), ["blocks.1.q_proj", "blocks.1.v_proj"]),
        (Where(blocks=(-1,)), ["blocks.2.q_proj", "blocks.2.v_proj"]),
    ],
)
def test_layers_are_chosen_by_name_kind_type_and_depth(model, where, found):
    assert paths(adapt(model, LoRA(), TASKS, where)) == found


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "q_prj",
            r"No layer of the model matches Where\(names=\('q_prj',\)\). Did you mean 'q_pro",
        ),
        ("nothing.at.all", "Its layers: embed, blocks.0.q_proj"),
        ("norm", "LoRA cannot change 'blocks.0.norm', a LayerNorm. It changes layers of kind line"),
        ("blocks.0", "LoRA cannot change 'blocks.0', a Block"),
        (Where(blocks=(7,)), "No layer of the model matches Where"),
    ],
)
def test_a_place_that_is_none_is_an_error_with_near_names(model, where, said):
    with pytest.raises(UsageError, match=said):
        adapt(model, LoRA(), TASKS, where)
    assert all(p.requires_grad for p in model.parameters()), "nothing was frozen on the way"


def test_what_where_takes_is_checked():
    with pytest.raises(UsageError, match=r"Where: names is 'q'; give a tuple, such as \('q',\)"):
        Where("q")
    with pytest.raises(UsageError, match=r"unknown kind 'liner'\. Did you mean 'linear'"):
        Where(kinds=("liner",))
    with pytest.raises(UsageError, match="regex '\\[' cannot be read"):
        Where(regex="[")


@pytest.mark.parametrize(
    ("layer", "method", "said"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), LoRA(), "its 2 groups make its weight no matrix"),
        (nn.Embedding(5, 4), LoRA(dropout=0.1), "which dropout cannot be of"),
        (nn.Linear(4, 4, bias=False), BitFit(), "it has no bias"),
        (nn.ConvTranspose2d(4, 4, 3), LoRA(), "only nn.Conv1d and nn.Conv2d are adapted"),
        (nn.EmbeddingBag(4, 4), LoRA(), "it adds embeddings up"),
        (nn.MultiheadAttention(4, 2), LoRA(), "LoRA cannot change 'it', a MultiheadAttention"),
        (nn.Linear(4, 4), PrefixTuning(), "It changes layers of kind attention"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), PrefixTuning(), "add_bias_kv"),
        (nn.MultiheadAttention(4, 2, kdim=3), PrefixTuning(), "another width"),
    ],
)
def test_what_a_method_cannot_do_is_an_error(layer, method, said):
    with pytest.raises(UsageError, match=said):
        adapt(nn.ModuleDict({"it": layer}), method, TASKS, "it")


def test_the_base_is_frozen_but_for_what_is_trained(model):
    adapted = adapt(model, LoRA(), TASKS, "q_proj", train="norm")
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("base.")} == {
        f"base.blocks.{i}.norm.{p}" for i in range(3) for p in ("weight", "bias")
    }
    assert len(adapted.trainable_parameters()) == len(trained) == 6 + 6
    names = set(adapted.adapter_state())
    assert names == trained
    assert "parts.0.adapters./blocks/1/q_proj.down_TRI" in names
    assert adapted.state_dict().keys() == {*names, *(f"base.{n}" for n in model.state_dict())}


def test_several_methods_follow_one_another(model):
    plain = copy.deepcopy(model)
    adapted = moved(adapt(model, [At(LoRA(), "q_proj"), At(SSF(), ("q_proj", "norm"))], TASKS))
    x = torch.randn(4, 3, 4)
    with adapted.task("b"):
        y = model(x)
    with adapted.fold("b"):
        assert torch.allclose(model(x), y, atol=1e-5)
    assert not torch.allclose(plain(x), y, atol=1e-2)
    assert type(adapted.at("blocks.0.norm")).__name__ == "SSFAdapter"
    assert adapted.at("blocks.0.q_proj", 1) is adapted.parts[1].at("blocks.0.q_proj")
    with pytest.raises(UsageError, match="has 2 adapters; say of which part"):
        adapted.at("blocks.0.q_proj")
    with pytest.raises(UsageError, match=r"Unknown adapted layer 'blocks\.0\.v_proj'"):
        adapted.at("blocks.0.v_proj")
    with pytest.raises(UsageError, match=r"DoRA reads the base's weights of 'blocks.0.q_proj', wh"):
        adapt(plain, [At(SSF(), "q_proj"), At(DoRA(), "q_proj")], TASKS)


def test_a_layer_that_runs_without_tasks_says_what_to_do(model):
    adapted = adapt(model, LoRA(), TASKS, "q_proj")
    with pytest.raises(UsageError, match="ran without anybody naming tasks"):
        model(torch.randn(2, 4))
    with adapted.task("a"):
        model(torch.randn(2, 4))
    with pytest.raises(UsageError, match=r"'blocks\.0\.q_proj' ran without"):
        model(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (torch.tensor([0, 3]), "the index has 3; the 3 tasks are 0 to 2, and -1 is none"),
        (torch.tensor([0, -2]), "the index has -2"),
        (torch.tensor([0.0, 1.0]), "an int64 tensor with one number per row; torch.float32"),
        (torch.tensor([[0, 1]]), r"of shape \(1, 2\) came"),
        ([0, 1], "list came"),
        (torch.tensor([], dtype=torch.int64), "the index names no row"),
    ],
)
def test_an_index_that_is_none_is_an_error(model, index, said):
    adapted = adapt(model, LoRA(), TASKS, "q_proj")
    with pytest.raises(UsageError, match=said):
        adapted.tasks(index)


def test_an_index_for_other_rows_is_an_error(model):
    adapted = adapt(model, LoRA(), TASKS, "q_proj")
    with (
        adapted.tasks(torch.tensor([0, 1])),
        pytest.raises(UsageError, match=r"tasks of 2 rows; the model's inputs have shapes \(4, 4"),
    ):
        model(torch.randn(4, 4))


def test_names_become_an_index(model):
    adapted = adapt(model, LoRA(), TASKS, "q_proj")
    assert adapted.index(["c", None, "a"]).tolist() == [2, -1, 0]
    with pytest.raises(UsageError, match="Unknown task 'bb'"):
        adapted.index(["bb"])
    with pytest.raises(UsageError, match=r"Task names must differ; a occurs"):
        adapt(Model(), LoRA(), ("a", "a"), "q_proj")
    with pytest.raises(UsageError, match="give the names of at least one task"):
        adapt(Model(), LoRA(), "abc", "q_proj")
    with pytest.raises(UsageError, match="The model is adapted already"):
        adapt(model, LoRA(), TASKS, "v_proj")


class Windows(nn.Module):
    """(B, L, 4) cut into windows, (B * W, L / W, 4), or into tokens, (B * L, 4)."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        if not self.windows:
            return self.inner(x.flatten(0, 1)).view(rows, length, 3)
        cut = x.reshape(rows * self.windows, -1, 4)
        return self.inner(cut).view(rows, length, 3)


@pytest.mark.parametrize("windows", [0, 1, 2, 3])
@pytest.mark.parametrize("method", [LoRA(), SSF(), DoRA()], ids=lambda m: type(m).__name__)
def test_windows_and_tokens_as_rows_have_their_rows_task(windows, method):
    torch.manual_seed(0)
    adapted = moved(adapt(Windows(windows), method, TASKS))
    x, index_B = torch.randn(4, 6, 4), torch.tensor([2, 0, 1, 2])
    with adapted.tasks(index_B):
        mixed = adapted(x)
    for b, t in enumerate(index_B.tolist()):
        with adapted.task(TASKS[t]):
            assert torch.allclose(adapted(x[b : b + 1])[0], mixed[b], atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("pre", [True, False])
def test_torchs_transformer_is_itself_at_the_start_and_rows_have_their_tasks(batch_first, pre):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first, norm_first=pre)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(4, 5, 8) if batch_first else torch.randn(5, 4, 8)
    hidden = torch.zeros(4, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    start = copy.deepcopy(model).requires_grad_(False)(x, src_key_padding_mask=hidden)
    where = ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2")
    adapted = adapt(model, LoRA(2), TASKS, where)
    assert len(paths(adapted)) == 12
    index_B = torch.tensor([1, -1, 0, 2])
    with adapted.tasks(index_B):
        assert torch.equal(model(x, src_key_padding_mask=hidden), start)
    moved(adapted)
    axis = 0 if batch_first else 1
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), adapted.tasks(index_B):
            mixed = model(x, src_key_padding_mask=hidden).movedim(axis, 0)
        assert torch.equal(mixed[1], start.movedim(axis, 0)[1])
        for b in (0, 2, 3):
            row = x.movedim(axis, 0)[b : b + 1].movedim(0, axis)
            with torch.no_grad(), adapted.task(TASKS[int(index_B[b])]):
                alone = model(row, src_key_padding_mask=hidden[b : b + 1]).movedim(axis, 0)[0]
            assert torch.allclose(alone, mixed[b], atol=1e-5)
            with torch.no_grad(), adapted.fold(TASKS[int(index_B[b])]):
                folded = model(row, src_key_padding_mask=hidden[b : b + 1]).movedim(axis, 0)[0]
            assert torch.allclose(folded, mixed[b], atol=1e-5)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("inputs", ["self", "cross", "three"])
def test_adapted_attention_is_torchs_own_with_masks_and_weights(average, batch_first, inputs):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first).requires_grad_(False)
    model = nn.ModuleDict({"a": copy.deepcopy(plain)})
    adapted = adapt(model, LoRA(), TASKS, "q_proj")
    shape = lambda n: (3, n, 8) if batch_first else (n, 3, 8)  # noqa: E731
    q = torch.randn(shape(4))
    k = q if inputs == "self" else torch.randn(shape(4))
    v = k if inputs != "three" else torch.randn(shape(4))
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[0, 2:] = True
    masks = [None, torch.randn(4, 4), torch.randn(6, 4, 4), torch.ones(4, 4).triu(1).bool()]
    for mask in masks:
        for hidden in (None, padding):
            if mask is not None and hidden is not None and mask.dtype != torch.bool:
                hidden = torch.zeros(3, 4).masked_fill(padding, -torch.inf)
            for need in (True, False):
                options = {"attn_mask": mask, "key_padding_mask": hidden, "need_weights": need}
                wanted = plain(q, k, v, **options, average_attn_weights=average)
                with adapted.task("a"):
                    came = model["a"](q, k, v, **options, average_attn_weights=average)
                assert torch.allclose(came[0], wanted[0], atol=1e-6)
                assert (came[1] is None) == (wanted[1] is None)
                if need:
                    assert torch.allclose(came[1], wanted[1], atol=1e-6)
    detached = adapted.detach()["a"]
    assert type(detached) is nn.MultiheadAttention
    assert detached.state_dict().keys() == plain.state_dict().keys()
    assert not detached._forward_pre_hooks


def test_keyword_arguments_and_tuples_pass_through():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.pair = Pair()

        def forward(self, x: Tensor, *, gain: float = 1.0) -> Tensor:
            first, second = self.pair(hidden=gain * self.inner(input=x))
            return first + second

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(hidden), hidden

    from polytask.adapt import Bottleneck

    adapted = moved(adapt(Odd(), [At(LoRA(), "inner"), At(Bottleneck(3), "pair")], TASKS))
    x = torch.randn(3, 4)
    with adapted.tasks(torch.tensor([0, 1, 0])):
        both = adapted(x, gain=2.0)
    with adapted.task("a"):
        assert torch.allclose(adapted(x, gain=2.0)[0], both[0], atol=1e-6)
        assert not torch.allclose(adapted(x, gain=2.0)[1], both[1], atol=1e-3)


def test_a_batch_in_another_dimension_has_to_be_named():
    adapted = moved(adapt(nn.Sequential(nn.Linear(4, 4)), LoRA(), TASKS, Where(axis=1)))
    x, index_B = torch.randn(5, 3, 4), torch.tensor([0, 2, 1])
    with adapted.tasks(index_B):
        y = adapted(x)
    with adapted.task("c"):
        assert torch.allclose(adapted(x)[:, 1], y[:, 1], atol=1e-6)
    first = adapt(nn.Sequential(nn.Linear(4, 4)), LoRA(), TASKS)
    with first.tasks(index_B), pytest.raises(UsageError, match=r"Say where the batch is: Where\("):
        first(x)


@pytest.mark.parametrize("method", [LoRA(), DoRA(), SSF()], ids=lambda m: type(m).__name__)
def test_folding_in_and_out_restores_the_very_tensors(model, method):
    where = ("q_proj", "v_proj")
    adapted = moved(adapt(model, method, TASKS, where))
    before = {n: (p, p.data_ptr(), p.clone()) for n, p in model.named_parameters()}
    x = torch.randn(4, 4)
    with adapted.task("b"):
        wanted = model(x)
    change = adapted.change("b")
    assert set(change) <= set(before)
    adapted.fold("b")
    assert torch.allclose(model(x), wanted, atol=1e-5)
    for name, delta in change.items():
        expected = (before[name][2].double() + delta).float()
        assert torch.equal(dict(model.named_parameters())[name], expected)
    for refused in (
        lambda: adapted.fold("a"),
        lambda: adapted.change("a"),
        lambda: adapted.add_task("d"),
        lambda: adapted.detach(),
        lambda: adapted.tasks(torch.tensor([0])).__enter__(),
    ):
        with pytest.raises(UsageError, match=r"'b' is folded into the base; unfold\(\)"):
            refused()
    adapted.unfold()
    with pytest.raises(UsageError, match="no task is folded"):
        adapted.unfold()
    for name, p in model.named_parameters():
        same, pointer, value = before[name]
        assert p is same
        assert p.data_ptr() == pointer
        assert torch.equal(p, value)
    extracted = adapted.extract("b")
    assert torch.allclose(extracted(x), wanted, atol=1e-5)
    assert extracted.state_dict().keys() == model.state_dict().keys()


def test_what_cannot_be_folded_says_why(model):
    shifted = moved(adapt(nn.Sequential(nn.Linear(4, 4, bias=False)), SSF(), TASKS))
    with pytest.raises(UsageError, match="'0', which has no bias to hold it"):
        shifted.fold("a")
    tied = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    tied["head"].weight = tied["embed"].weight
    adapted = adapt(tied, LoRA(), TASKS, "head")
    with pytest.raises(UsageError, match="is also that of embed, head, which its adapter"):
        adapted.change("a")


def test_a_task_is_added_to_the_same_parameters_and_their_optimiser(model):
    adapted = moved(adapt(model, LoRA(), TASKS, ("q_proj", "v_proj")))
    optimiser = torch.optim.AdamW(adapted.trainable_parameters(), lr=1e-2)
    x, index_B = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])

    def step(index_B: Tensor) -> None:
        with adapted.tasks(index_B):
            model(x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    step(index_B)
    with torch.no_grad(), adapted.tasks(index_B):
        before = model(x)
    untold = torch.optim.AdamW(adapted.trainable_parameters())
    untold.load_state_dict(optimiser.state_dict())
    with adapted.tasks(index_B):
        alive = model(x)  # a graph from before keeps parts of autograd at their old shapes
    adapted.add_task("d", optimiser, seed=4)
    assert alive.requires_grad
    with torch.no_grad(), adapted.tasks(index_B):
        assert torch.equal(model(x), before)
    assert adapted.names == ("a", "b", "c", "d")
    fresh = adapted.parts[0].at("blocks.0.q_proj")
    old = fresh.down_TRI.detach().clone()
    assert not fresh.up_TRO[3].any()
    step(torch.tensor([3, 3, 3, 3]))
    assert fresh.up_TRO[3].any()
    assert not torch.equal(fresh.down_TRI[:3], old[:3]), "AdamW moves what has momentum"
    with adapted.tasks(index_B):
        model(x).square().sum().backward()
    with pytest.raises(RuntimeError, match="size of tensor"):
        untold.step()
    with pytest.raises(UsageError, match="has a task 'd' already"):
        adapted.add_task("d")


def test_the_index_is_right_in_passes_made_again_whatever_is_current(model):
    x = torch.randn(4, 4)
    patterns = [torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, -1, 1])]

    def gradients(again: bool, where: str) -> list[Tensor]:
        adapted = moved(adapt(copy.deepcopy(model), LoRA(), TASKS, ("q_proj", "v_proj")))
        body = adapted.base
        losses = []
        for index_B in patterns:
            with adapted.tasks(index_B):
                h = body.embed(x)
                for block in body.blocks:
                    h = checkpoint(block, h, use_reentrant=False) if again else block(h)
                losses.append(h.square().sum())
                if where == "inside":
                    losses.pop().backward()
        if where == "after":
            sum(losses).backward()
        if where == "in another context":
            with adapted.tasks(torch.tensor([1, 1, 1, 1])):
                sum(losses).backward()
        return [p.grad for p in adapted.parts.parameters()]

    plain = gradients(False, "after")
    for where in ("inside", "after", "in another context"):
        for mine, theirs in zip(gradients(True, where), plain, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6)


def test_reentrant_checkpoints_find_their_rows_or_say_so(model):
    adapted = moved(adapt(model, LoRA(), TASKS, "q_proj"))
    twin = copy.deepcopy(adapted)
    x = torch.randn(4, 4).requires_grad_()
    with adapted.tasks(torch.tensor([0, 1, 2, 0])):
        y = checkpoint(model, x, use_reentrant=True)
    with adapted.tasks(torch.tensor([1, 1, 1, 1])):
        model(x)  # another batch in between
    y.square().sum().backward()
    with twin.tasks(torch.tensor([0, 1, 2, 0])):
        twin(x.detach()).square().sum().backward()
    for mine, theirs in zip(adapted.parts.parameters(), twin.parts.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)
    with adapted.tasks(torch.tensor([0, 1, 2, 0])):
        y = checkpoint(model, x, use_reentrant=True)
        with pytest.raises(RunError, match="Checkpoint with use_reentrant=False"):
            y.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_compilation_serves_all_patterns_of_tasks_in_training_too(model, backend):
    adapted = moved(adapt(model, [At(LoRA(), "q_proj"), At(SSF(), "norm")], TASKS))
    torch._dynamo.reset()
    counted = CompileCounterWithBackend(backend)
    compiled = torch.compile(adapted, backend=counted, fullgraph=True)
    x = torch.randn(4, 4)
    for pattern in ([0, 1, 2, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [2, -1, 0, 0], [0, 0, 0, 0]):
        adapted.zero_grad()
        with adapted.tasks(torch.tensor(pattern)):
            compiled(x).square().sum().backward()
            mine = [p.grad.clone() for p in adapted.parts.parameters()]
            adapted.zero_grad()
            adapted(x).square().sum().backward()
        for a, b in zip(mine, adapted.parts.parameters(), strict=True):
            assert torch.allclose(a, b.grad, atol=1e-5)
    assert counted.frame_count == 1
    torch._dynamo.reset()


def test_the_context_may_be_compiled_with_the_model(model):
    adapted = moved(adapt(model, LoRA(), TASKS, "q_proj"))
    torch._dynamo.reset()
    counted = CompileCounterWithBackend("eager")

    def run(x: Tensor, index_B: Tensor) -> Tensor:
        with adapted.tasks(index_B):
            return adapted.base(x)

    compiled, x = torch.compile(run, backend=counted, fullgraph=True), torch.randn(4, 4)
    for pattern in ([0, 1, 2, 0], [1, -1, 1, 1], [2, 2, 2, 2]):
        index_B = torch.tensor(pattern)
        assert torch.allclose(compiled(x, index_B), run(x, index_B), atol=1e-6)
    assert counted.frame_count == 1
    torch._dynamo.reset()


def test_mixed_precision_and_accumulation(model):
    adapted = moved(adapt(model, [At(LoRA(), "q_proj"), At(SSF(), "v_proj")], TASKS))
    x, index_B = torch.randn(6, 3, 4), torch.tensor([0, 1, 2, 0, -1, 1])
    with torch.autocast("cpu", torch.bfloat16), adapted.tasks(index_B):
        y = adapted(x)
        y.square().sum().backward()
    rough = [p.grad.clone() for p in adapted.parts.parameters()]
    assert all(g.dtype == torch.float32 for g in rough)
    adapted.zero_grad()
    with adapted.tasks(index_B):
        adapted(x).square().sum().backward()
    exact = [p.grad.clone() for p in adapted.parts.parameters()]
    for a, b in zip(rough, exact, strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.99
    adapted.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        with adapted.tasks(index_B[rows]):
            adapted(x[rows]).square().sum().backward()
    for a, b in zip(adapted.parts.parameters(), exact, strict=True):
        assert torch.allclose(a.grad, b, atol=1e-4, rtol=1e-4)


def test_adapters_of_another_precision_than_the_base(model):
    adapted = adapt(model.bfloat16(), LoRA(), TASKS, "q_proj", dtype=torch.float32)
    assert {p.dtype for p in adapted.trainable_parameters()} == {torch.float32}
    with adapted.task("a"):
        y = adapted(torch.randn(2, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.sum().backward()


def test_a_copy_is_whole_and_apart(model):
    adapted = moved(adapt(model, LoRA(), TASKS, "q_proj"))
    x = torch.randn(3, 4)
    with adapted.tasks(torch.tensor([0, 0, 0]), given={"graph": model.embed(x)}):
        before = adapted(x)  # not even a batch that is current, with parts of its graph
        twin = copy.deepcopy(adapted)
    for p in twin.parts.parameters():
        p.data.zero_()
    with adapted.task("a"):
        assert torch.equal(adapted(x), before)
    with twin.task("a"):
        assert not torch.equal(twin(x), before)
    with pytest.raises(UsageError, match="ran without"):
        adapted(x)


def test_contexts_nest_and_are_of_one_thread(model):
    adapted = moved(adapt(model, LoRA(), TASKS, "q_proj"))
    x = torch.randn(2, 4)
    with adapted.task("a"):
        first = adapted(x)
        with adapted.task("b"):
            second = adapted(x)
        assert torch.equal(adapted(x), first)
        assert not torch.equal(first, second)
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                with adapted.task("b"):
                    pass
            except RunError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "Another thread has named" in str(caught[0])
        assert torch.equal(adapted(x), first)


def test_prompts_and_prefixes_need_a_task_for_every_row():
    model = nn.Sequential(nn.Embedding(5, 4))
    adapted = adapt(model, PromptTuning(2), TASKS)
    with pytest.raises(UsageError, match="beside PromptAdapter every row needs a task"):
        adapted.tasks(torch.tensor([0, -1]))
    ids = torch.tensor([[1, 2], [3, 4]])
    with adapted.without():
        assert torch.equal(model(ids), model[0].weight[ids])
    with adapted.task("b"):
        assert model(ids).shape == (2, 4, 4)


@pytest.mark.parametrize("where", ["q_proj", "linear1"])
def test_nested_tensors_are_refused_with_what_to_do(where):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that nested tensors are a prototype
        model = nn.TransformerEncoder(layer, 2).eval()
        adapted = adapt(model, LoRA(), TASKS, where)
        hidden = torch.tensor([[False, False, True], [False, False, False]])
        with (
            torch.no_grad(),
            adapted.task("a"),
            pytest.raises(UsageError, match="with enable_nested_tensor=False"),
        ):
            model(torch.randn(2, 3, 8), src_key_padding_mask=hidden)


def test_one_attention_has_one_prefix_beside_adapters_of_its_projections():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"it": attention})
    with pytest.raises(UsageError, match="'it' has 2 prefixes; give it one"):
        adapt(model, [At(PrefixTuning(2)), At(PrefixTuning(3))], TASKS)
    assert type(attention) is nn.MultiheadAttention, "nothing is left of what failed"
    assert all(p.requires_grad for p in model.parameters())
    adapted = moved(adapt(model, [At(PrefixTuning(2)), At(LoRA(), "q_proj")], TASKS))
    x, index_B = torch.randn(3, 4, 8), torch.tensor([0, 2, 1])
    with adapted.tasks(index_B):
        mixed = attention(x, x, x)[0]
    with adapted.task("c"):
        assert torch.allclose(attention(x, x, x)[0][1], mixed[1], atol=1e-6)


def test_a_thousand_tasks_are_resident(model):
    names = [f"task {t}" for t in range(1000)]
    adapted = adapt(model, LoRA(2), names, ("q_proj", "v_proj"))
    x, index_B = torch.randn(4, 4), torch.tensor([0, 999, 500, 3])
    with adapted.tasks(index_B):
        adapted(x).square().sum().backward()
    up = adapted.parts[0].at("blocks.0.q_proj").up_TRO
    assert up.grad.flatten(1).any(1).nonzero().flatten().tolist() == [0, 3, 500, 999]


@pytest.mark.parametrize("flat", [False, True])
def test_hugging_faces_conv1d_is_a_linear_layer(flat):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layer = transformers.pytorch_utils.Conv1D(6, 4)
    linear = nn.Linear(4, 6)
    linear.weight.data, linear.bias.data = layer.weight.data.T.clone(), layer.bias.data.clone()
    ours, plain = (moved(adapt(nn.Sequential(m), LoRA(), TASKS)) for m in (layer, linear))
    x = torch.randn(3, 4) if flat else torch.randn(3, 5, 4)
    index_B = torch.tensor([0, 2, 1])
    with ours.tasks(index_B), plain.tasks(index_B):
        assert torch.allclose(ours(x), plain(x), atol=1e-6)
    change = ours.change("c")
    assert torch.allclose(change["0.weight"].T, plain.change("c")["0.weight"])
