"""Prefixes in attention of Hugging Face's models: against loops by hand, and caches as PEFT's."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.adapt import (
    MAM,
    At,
    Bottleneck,
    LoRA,
    PrefixTuning,
    Where,
    adapt,
    load_adapted,
    save_adapted,
)
from polytask.adapt.registry import asked_by, width_of
from polytask.errors import UsageError

from .test_hugging_face import TASKS, batch, bert, gpt2, llama, moved, with_and_without_checkpoints

transformers = pytest.importorskip("transformers")

INDEX_B = torch.tensor([2, 0, 0, 1])
MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}
LONG = 3


def t5():
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(config)


def prefixed(model: nn.Module, hidden: int = 0):
    return adapt(model, PrefixTuning(LONG, std=1.0, hidden=hidden), TASKS)


def by_hand(
    q_LE: Tensor, k_SE: Tensor, v_SE: Tensor, heads: int, keys: int, seen_LS: Tensor, scale: float
) -> Tensor:
    """One row of attention, head after head; of `heads`, several read one of `keys`."""
    made = []
    q, k, v = (
        t.unflatten(1, (many, -1)) for t, many in ((q_LE, heads), (k_SE, keys), (v_SE, keys))
    )
    for h in range(heads):
        own = h * keys // heads
        scores = scale * q[:, h] @ k[:, own].T + seen_LS
        made.append(scores.softmax(-1) @ v[:, own])
    return torch.cat(made, 1)


def numbers(mask: Tensor | None, b: int, like: Tensor, causal: bool) -> Tensor:
    """What is added to the scores of row b, (L, S)."""
    if mask is not None:
        own = mask[b, 0]
        if own.dtype != torch.bool:
            return own
        return torch.zeros_like(own, dtype=like.dtype).masked_fill(~own, -torch.inf)
    whole = torch.zeros(like.shape[1], like.shape[1], dtype=like.dtype)
    return whole.masked_fill(torch.ones_like(whole).triu(1).bool(), -torch.inf) if causal else whole


MASKS = [
    ("eager", "none"), ("eager", "added"), ("sdpa", "none"), ("sdpa", "added"), ("sdpa", "boolean"),
]  # fmt: skip
"""Eager attention takes masks that it adds alone."""


def masked(kind: str, rows: int, length: int, dtype: torch.dtype) -> Tensor | None:
    """A mask that hides a key of one row from all, and another from one query alone."""
    if kind == "none":
        return None
    seen = torch.ones(rows, 1, length, length, dtype=torch.bool)
    seen[1, :, :, 3:] = False
    seen[0, :, 2, 1] = False
    if kind == "boolean":
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("implementation", "kind"), MASKS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_it_is_the_loop_that_puts_keys_and_values_first(name, implementation, kind, dtype, close):
    """Llama: fewer heads of keys than of queries, rotated keys, and sdpa causal without a mask."""
    if (name, implementation) == ("llama", "eager"):  # its softmax is float32's
        close = max(close, 1e-6)
    model = MODELS[name]().to(dtype)
    model.set_attn_implementation(implementation)
    adapted = prefixed(model, hidden=5 if kind == "added" else 0)
    path = adapted.layers()[0].path
    attention, prefix = model.get_submodule(path), adapted.at(path)
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    x.requires_grad_(True)
    mask, options = masked(kind, 4, 5, dtype), {}
    if name == "llama":
        options["position_embeddings"] = model.model.rotary_emb(x, torch.arange(5)[None])
    with adapted.tasks(INDEX_B):
        ours, weights = attention(x, attention_mask=mask, **options)
    assert weights is None if implementation == "sdpa" else weights.shape == (4, 2, 5, 5)
    heads, keys = 2, 1 if name == "llama" else 2
    rows = []
    for b, t in enumerate(INDEX_B.tolist()):
        if name == "bert":
            q, k, v = (m(x[b]) for m in (attention.query, attention.key, attention.value))
        else:
            q, k, v = (m(x[b]) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
            cos, sin = options["position_embeddings"]
            rotate = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
            turned = rotate(
                q.view(1, 5, heads, -1).transpose(1, 2), k.view(1, 5, keys, -1).transpose(1, 2),
                cos, sin,
            )  # fmt: skip
            q, k = (r[0].transpose(0, 1).flatten(1) for r in turned)
        own = prefix.prefix_TPC[t]
        if prefix.hidden:
            own = torch.tanh(own @ prefix.first_TEM[t]) @ prefix.second_TMC[t]
        key, value = own.chunk(2, 1)
        causal = (name, implementation) == ("llama", "sdpa")
        seen = functional.pad(numbers(mask, b, x, causal), (LONG, 0))
        scale = 1 / math.sqrt(q.shape[1] // heads)
        made = by_hand(q, torch.cat([key, k]), torch.cat([value, v]), heads, keys, seen, scale)
        rows.append(attention.o_proj(made) if name == "llama" else made)
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    pull = torch.linspace(-1, 1, ours.numel(), dtype=dtype).view_as(ours)
    wanted = [x, *prefix.parameters()]
    mine, other = (torch.autograd.grad((y * pull).sum(), wanted) for y in (ours, theirs))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=close, atol=close)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_is_a_cache_that_holds_the_prefix(name, implementation):
    """How PEFT tunes prefixes: as keys and values of a past; its positions start where ours do."""
    model = MODELS[name]().eval().double()
    model.set_attn_implementation(implementation)
    plain = copy.deepcopy(model)
    adapted = prefixed(model)
    heads = 1 if name == "llama" else 2
    past = transformers.DynamicCache()
    for i, layer in enumerate(adapted.layers()):
        own = adapted.at(layer.path).prefix_TPC[INDEX_B].detach()
        key, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in own.chunk(2, 2))
        past.update(key, value, i)
    given = batch()
    longer = torch.cat([torch.ones(4, LONG).long(), given["attention_mask"]], 1)
    theirs = plain(
        given["input_ids"], past_key_values=past, attention_mask=longer,
        position_ids=torch.arange(6)[None].expand(4, -1),
    ).logits  # fmt: skip
    with adapted.tasks(INDEX_B):
        ours = adapted(**given).logits
        whole = adapted(given["input_ids"]).logits
    seen = given["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole[seen], ours[seen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_biases_of_positions_are_those_of_the_inputs_own_keys(implementation):
    model = t5().encoder.eval().double()
    model.set_attn_implementation(implementation)
    adapted = prefixed(model)
    (layer,) = adapted.layers()
    attention, x = model.get_submodule(layer.path), torch.randn(4, 5, 16, dtype=torch.float64)
    with adapted.tasks(INDEX_B):
        ours = attention(x)[0]
    bias_HLS = attention.compute_bias(5, 5, device=x.device)[0]
    for b, t in enumerate(INDEX_B.tolist()):
        q, k, v = (m(x[b]) for m in (attention.q, attention.k, attention.v))
        key, value = adapted.at(layer.path).prefix_TPC[t].chunk(2, 1)
        k, v = torch.cat([key, k]), torch.cat([value, v])
        parts = [
            by_hand(*(y[:, 4 * h : 4 * h + 4] for y in (q, k, v)), 1, 1, seen, 1.0)
            for h, seen in enumerate(functional.pad(bias_HLS, (LONG, 0)))
        ]
        torch.testing.assert_close(ours[b], attention.o(torch.cat(parts, 1)))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_have_their_tasks_and_the_model_is_given_back_as_it_was(name, implementation):
    model, other = MODELS[name]().eval(), MODELS[name]().eval()
    for one in (model, other):
        one.set_attn_implementation(implementation)
    start = model(**batch()).logits
    attention = [m for m in model.modules() if asked_by(m)]
    adapted = prefixed(model)
    assert [model.get_submodule(la.path) for la in adapted.layers()] == attention
    with torch.no_grad(), adapted.tasks(INDEX_B):
        mixed = model(**batch()).logits
        assert torch.equal(other(**batch()).logits, start), "another model of the process"
    assert not torch.allclose(mixed, start, atol=1e-5)
    for b, t in enumerate(INDEX_B.tolist()):
        own = {n: v[b : b + 1] for n, v in batch().items()}
        with torch.no_grad(), adapted.task(TASKS[t]):
            assert torch.allclose(model(**own).logits[0], mixed[b], atol=1e-6)
    twin = copy.deepcopy(adapted)
    with torch.no_grad(), twin.tasks(INDEX_B):
        assert torch.equal(twin(**batch()).logits, mixed)
    with adapted.without():
        assert torch.equal(model(**batch()).logits, start)
    with pytest.raises(UsageError, match="ran without anybody naming tasks"):
        model(**batch())
    assert adapted.detach() is model
    assert torch.equal(model(**batch()).logits, start)
    assert all(type(m.config) is type(model.config) for m in attention)
    with torch.no_grad(), twin.tasks(INDEX_B):
        assert torch.equal(twin(**batch()).logits, mixed), "a copy lives on"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_its_own_checkpointing_takes_the_right_rows(name, reentrant):
    gradients = with_and_without_checkpoints(lambda: prefixed(MODELS[name]()), INDEX_B, reentrant)
    for mine, theirs in zip(*gradients, strict=True):
        assert mine.abs().sum() > 0
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_generation_needs_no_other_cache():
    adapted = prefixed(llama().eval())
    ids, options = batch()["input_ids"], {"max_new_tokens": 4, "do_sample": False}
    with adapted.tasks(INDEX_B):
        together = adapted.base.generate(ids, **options)
        again = adapted.base.generate(ids, use_cache=False, **options)
    with adapted.tasks(INDEX_B.repeat_interleave(2)):
        beams = adapted.base.generate(ids, num_beams=2, **options)
    assert torch.equal(together, again)
    for b, t in enumerate(INDEX_B.tolist()):
        with adapted.task(TASKS[t]):
            alone = adapted.base.generate(ids[b : b + 1], **options)
            wide = adapted.base.generate(ids[b : b + 1], num_beams=2, **options)
        assert torch.equal(alone[0], together[b][: alone.shape[1]])
        assert torch.equal(wide[0], beams[b][: wide.shape[1]])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_one_compilation_serves_all_patterns(name):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    torch._dynamo.reset()
    adapted = prefixed(MODELS[name]().eval())
    compiled = torch.compile(adapted.base, backend=backend)
    for index_B in (INDEX_B, INDEX_B.roll(1), torch.zeros(4).long()):
        with torch.no_grad(), adapted.tasks(index_B):
            assert torch.allclose(compiled(**batch()).logits, adapted(**batch()).logits, atol=1e-6)
    assert len(seen) == 1
    torch._dynamo.reset()


def test_one_file_brings_prefixes_back_and_a_task_is_added(tmp_path):
    adapted = moved(prefixed(llama().eval(), hidden=4))
    with torch.no_grad(), adapted.tasks(INDEX_B):
        before = adapted(**batch()).logits
    adapted.add_task("d")
    with torch.no_grad(), adapted.tasks(INDEX_B):
        assert torch.equal(adapted(**batch()).logits, before)
    save_adapted(tmp_path / "a", adapted)
    loaded = load_adapted(tmp_path / "a", llama().eval())
    with torch.no_grad(), loaded.tasks(INDEX_B):
        assert torch.equal(loaded(**batch()).logits, before)
    with torch.no_grad(), loaded.task("d"), adapted.task("d"):
        assert torch.equal(loaded(**batch()).logits, adapted(**batch()).logits)


def test_mam_and_others_at_one_attention():
    """MAM's two parts; LoRA inside of the attention, and a bottleneck after it, beside a prefix."""
    adapted = adapt(llama().eval(), MAM("mlp", length=2, width=4), TASKS)
    kinds = [la.kind for la in adapted.layers()]
    assert kinds == ["attention"] * 2 + ["module"] * 2
    plans = [
        At(PrefixTuning(2, std=1.0)), At(LoRA(), ("q_proj", "v_proj")),
        At(Bottleneck(4), "self_attn"),
    ]  # fmt: skip
    several = moved(adapt(llama().eval(), plans, TASKS))
    alone = adapt(llama().eval(), plans[:1], TASKS)
    for one in (adapted, several):
        with torch.no_grad(), one.tasks(INDEX_B):
            mixed = one(**batch()).logits
        for b, t in enumerate(INDEX_B.tolist()):
            own = {n: v[b : b + 1] for n, v in batch().items()}
            with torch.no_grad(), one.task(TASKS[t]):
                assert torch.allclose(one(**own).logits[0], mixed[b], atol=1e-5)
    path = "model.layers.0.self_attn"
    x = torch.randn(4, 5, 16)
    options = {"position_embeddings": several.base.model.rotary_emb(x, torch.arange(5)[None])}
    for part in (1, 2):  # what comes after attention is the bottleneck's change alone
        for adapter in several.parts[part].adapters.values():
            if part == 1:
                nn.init.zeros_(adapter.up_TRO)
    several.parts[0].at(path).load_state_dict(alone.at(path).state_dict())
    with torch.no_grad(), alone.tasks(INDEX_B), several.tasks(INDEX_B):
        y = alone.base.get_submodule(path)(x, attention_mask=None, **options)[0]
        came = several.base.get_submodule(path)(x, attention_mask=None, **options)[0]
        wanted = several.at(path, 2)(x, y, several._current.rows)
    assert torch.allclose(came, wanted, atol=1e-6)


def test_other_methods_see_the_module_that_it_was():
    model = llama()
    plain = adapt(model, Bottleneck(4), TASKS, "self_attn")
    assert [la.kind for la in plain.layers()] == ["module"] * 2
    plain.detach()
    with pytest.raises(UsageError, match=r"cannot change 'model.layers.0.self_attn', a LlamaAtt"):
        adapt(model, Bottleneck(4), TASKS, Where(kinds=("attention",)))
    every = adapt(model, LoRA(), TASKS)
    assert {la.kind for la in every.layers()} == {"linear", "embedding"}


def test_widths_are_told_or_given():
    assert [width_of(m.get_submodule(p)) for m, p in (
        (bert(), "bert.encoder.layer.0.attention.self"), (gpt2(), "transformer.h.0.attn"),
        (llama(), "model.layers.0.self_attn"), (t5(), "decoder.block.0.layer.1.EncDecAttention"),
    )] == [16, 16, 8, 8]  # fmt: skip
    adapted = adapt(llama(), PrefixTuning(2), TASKS, Where(width=16))
    with (
        adapted.task("a"),
        pytest.raises(UsageError, match="keys of 8 channels and values of 8, not 16; where both"),
    ):
        adapted(**batch())


def test_attention_that_takes_no_prefix_is_refused():
    model = gpt2()
    model.set_attn_implementation("eager")
    model.transformer.h[1].attn.reorder_and_upcast_attn = True
    with pytest.raises(UsageError, match=r"'transformer.h.1.attn', a GPT2Attention, attends by co"):
        prefixed(model)
    assert all(type(b.attn.config) is type(model.config) for b in model.transformer.h)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UsageError, match=r"'model.layers.0.self_attn' has 2 prefixes; give it one"):
        adapt(llama(), [At(PrefixTuning(2)), At(PrefixTuning(3))], TASKS)
    adapted = prefixed(llama())
    adapted.base.set_attn_implementation("flex_attention")
    x, attention = torch.randn(4, 5, 16), adapted.base.model.layers[0].self_attn
    angles = adapted.base.model.rotary_emb(x, torch.arange(5)[None])
    with adapted.task("a"), pytest.raises(UsageError, match=r"attends by 'flex_attention'.*sdpa"):
        attention(x, angles, None)
    adapted.base.set_attn_implementation("sdpa")
    with adapted.tasks(torch.tensor([0, 1, 2])), pytest.raises(UsageError, match="3 rows"):
        adapted(**batch())
    config = transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(UsageError, match="PrefixTuning changes layers of kind attention"):
        prefixed(transformers.BloomForCausalLM(config))


def test_options_reach_the_implementation_by_name_and_by_place():
    adapted = prefixed(bert().eval())
    attention = adapted.layers()[0].module
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, 2, 5, 8, generator=draw) for _ in range(3))
    with torch.no_grad(), adapted.tasks(INDEX_B):
        name = attention.config._attn_implementation
        attend = transformers.AttentionInterface()[name]
        named = attend(attention, query, key, value, None, dropout=0.0, scaling=2.0)[0]
        placed = attend(attention, query, key, value, None, 0.0, 2.0)[0]
        other = attend(attention, query, key, value, None, 0.0, 0.1)[0]
    assert torch.equal(named, placed)
    assert not torch.allclose(named, other)
