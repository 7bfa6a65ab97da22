"""Models of Hugging Face, built from their configurations with random weights."""

import copy

import pytest
import torch
from torch import Tensor

from polytask.adapt import SSF, At, Bottleneck, DoRA, LoRA, PromptTuning, Where, adapt
from polytask.errors import UsageError

transformers = pytest.importorskip("transformers")

TASKS = ("a", "b", "c")
INDEX_B = torch.tensor([2, 0, -1, 1])


def bert():
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=40, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, max_position_embeddings=40,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}
PLACES = {
    "bert": [At(LoRA(), ("query", "value")), At(SSF(), "LayerNorm"), At(Bottleneck(4), "0.output")],
    "gpt2": [At(DoRA(), "c_attn"), At(SSF(), ("ln_1", "mlp.c_fc")), At(Bottleneck(4), "mlp")],
    "llama": [
        At(LoRA(), Where(("q_proj", "v_proj"), blocks=(-1,))),
        At(SSF(), Where(types=("LlamaRMSNorm",))),
        At(Bottleneck(4, source="parallel", scale=4.0), "mlp"),
    ],
}


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 30, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def moved(adapted):
    generator = torch.Generator().manual_seed(1)
    for p in adapted.parts.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return adapted


@pytest.mark.parametrize("name", MODELS)
def test_rows_have_their_tasks(name):
    model = MODELS[name]().eval()
    start = copy.deepcopy(model).requires_grad_(False)(**batch()).logits
    adapted = moved(adapt(model, PLACES[name], TASKS))
    with torch.no_grad(), adapted.tasks(INDEX_B):
        mixed = adapted(**batch()).logits
    assert torch.equal(mixed[2], start[2])
    for b, t in enumerate(INDEX_B.tolist()):
        if t >= 0:
            own = {n: v[b : b + 1] for n, v in batch().items()}
            with torch.no_grad(), adapted.task(TASKS[t]):
                assert torch.allclose(model(**own).logits[0], mixed[b], atol=1e-5)
            assert not torch.allclose(mixed[b], start[b], atol=1e-3)


def enable_checkpointing(model, reentrant: bool) -> None:
    newer = getattr(model, "activation_checkpointing_enable", None)  # from transformers 5.23 on
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


def with_and_without_checkpoints(make, index_B: Tensor, reentrant: bool) -> list[list[Tensor]]:
    """Return the gradients of two passes with other rows, without and with checkpointing."""
    gradients = []
    for saving in (False, True):
        adapted = make()
        adapted.train()
        if saving:
            enable_checkpointing(adapted.base, reentrant)
            adapted.base.enable_input_require_grads()
        losses = []
        for rows_B in (index_B, index_B.roll(1)):
            with adapted.tasks(rows_B):
                losses.append(adapted(**batch()).logits.square().mean())
        sum(losses).backward()
        gradients.append([p.grad for p in adapted.parts.parameters()])
    return gradients


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_its_own_checkpointing_takes_the_right_rows(name, reentrant):
    gradients = with_and_without_checkpoints(
        lambda: moved(adapt(MODELS[name](), PLACES[name], TASKS)), INDEX_B, reentrant
    )
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_generation_takes_an_index_for_its_rows():
    adapted = moved(adapt(llama().eval(), PLACES["llama"], TASKS))
    ids = batch()["input_ids"]
    with adapted.tasks(INDEX_B):
        together = adapted.base.generate(ids, max_new_tokens=4, do_sample=False)
    for b, t in enumerate(INDEX_B.tolist()):
        with adapted.task(TASKS[t]) if t >= 0 else adapted.without():
            alone = adapted.base.generate(ids[b : b + 1], max_new_tokens=4, do_sample=False)
        assert torch.equal(alone[0], together[b][: alone.shape[1]])


@pytest.mark.parametrize(
    ("name", "embedding"), [("bert", "word_embeddings"), ("gpt2", "wte"), ("llama", "embed_tokens")]
)
def test_prompts_lengthen_masks_and_labels(name, embedding):
    model = MODELS[name]().eval()
    plain = copy.deepcopy(model)
    adapted = adapt(model, PromptTuning(3), TASKS, embedding)
    (layer,) = adapted.layers()
    prompt_TPE = adapted.parts[0].at(layer.path).prompt_TPE
    own, index_B = batch(), torch.tensor([2, 0, 0, 1])
    with adapted.tasks(index_B):
        came = adapted(**own).logits
    embeds = plain.get_input_embeddings()(own["input_ids"])
    wanted = plain(
        inputs_embeds=torch.cat([prompt_TPE[index_B], embeds], 1),
        attention_mask=torch.cat([torch.ones(4, 3).long(), own["attention_mask"]], 1),
    ).logits
    assert torch.allclose(came, wanted, atol=1e-6)
    with adapted.without():
        assert torch.allclose(model(**own).logits, plain(**own).logits, atol=1e-6)


def test_prompts_train_and_generate_a_language_model():
    adapted = adapt(llama(), PromptTuning(3), TASKS, "embed_tokens")
    own, index_B = batch(), torch.tensor([2, 0, 0, 1])
    with adapted.tasks(index_B):
        loss = adapted(own["input_ids"], labels=own["input_ids"]).loss
    loss.backward()
    (prompt,) = adapted.trainable_parameters()
    assert prompt.grad.flatten(1).any(1).all()
    with adapted.tasks(index_B):
        options = {"max_new_tokens": 2, "do_sample": False}
        made = adapted.base.generate(own["input_ids"], use_cache=False, **options)
        assert made.shape[1] >= 7
        with pytest.raises(UsageError, match="generate with use_cache=False"):
            adapted.base.generate(own["input_ids"], use_cache=True, **options)
        with pytest.raises(UsageError, match="give it those alone"):
            adapted(inputs_embeds=torch.randn(4, 6, 16))
        placed = adapted(own["input_ids"], position_ids=torch.arange(6)[None]).logits
        assert torch.allclose(placed, adapted(own["input_ids"]).logits, atol=1e-6)


def test_an_embedding_that_a_decoder_shares_is_refused():
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UsageError, match="prompts would stand before both; adapt the encoder al"):
        adapt(model, PromptTuning(3), TASKS, "shared")
    encoder = model.get_encoder()
    adapted = adapt(encoder, PromptTuning(3), TASKS, "embed_tokens")
    with adapted.task("a"):
        hidden = encoder(input_ids=torch.randint(30, (2, 5))).last_hidden_state
    assert hidden.shape == (2, 8, 16)
