"""Finding the layers of any model that can be adapted, and telling what they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from polytask.adapt.base import Kind, Layer
from polytask.adapt.registry import asked_by, width_of
from polytask.errors import UsageError

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Names of the parts of torch's packed attention, which are no modules there."""

CHANNELS_FIRST = (
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip
"""Norms whose channels are axis 1."""


@dataclass(frozen=True)
class Found:
    """A place of the model. inside: the attention whose projection it is. why: it is no layer of a
    kind although it looks like one. batch_second: the batch is axis 1 there. attends: it is a
    module, and attention that asks transformers' registry as well."""

    kind: Kind
    module: nn.Module
    inside: nn.MultiheadAttention | None = None
    why: str = ""
    batch_second: bool = False
    attends: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Everything that it is."""
        return ("attention", self.kind) if self.attends else (self.kind,)


def find(model: nn.Module) -> dict[str, Found]:
    """Return every place of the model by name; a module used twice has its first name."""
    found: dict[str, Found] = {}
    attentions: dict[str, nn.MultiheadAttention] = {}
    second: list[str] = []
    for path, module in model.named_modules():
        outer = path.rpartition(".")[0]
        if outer in attentions and path:
            attention = attentions[outer]
            found[path] = Found("linear", module, attention)
            continue
        if _batch_second(module):
            second.append(path)
        kind, why = _kind(module)
        behind = any(path == p or path.startswith(f"{p}.") or not p for p in second)
        attends = kind == "module" and asked_by(module) is not None
        found[path] = Found(kind, module, None, why, behind, attends)
        if isinstance(module, nn.MultiheadAttention):
            attentions[path] = module
            for name in PROJECTIONS:
                inner = f"{path}.{name}" if path else name
                found[inner] = Found("linear", module, module)
    return found


def layer_of(
    path: str, one: Found, axis: int | None, width: int | None, kind: Kind | None = None
) -> Layer:
    """Return the layer at a place. kind: which of two that it is; None: not the attention.

    Raises UsageError where a module's width cannot be told.
    """
    kind = kind or one.kind
    # Packed attention hands its projections the batch first, whatever it takes itself.
    module, at = one.module, int(one.batch_second) if axis is None else axis
    if one.inside is not None:
        at = 0
    if isinstance(module, nn.MultiheadAttention) and one.kind == "linear":
        return _projection(path, module, at)
    if kind == "module":
        inputs, outputs = _ends(path, module) if width is None else (width, width)
        return Layer(path, "module", module, inputs, outputs, axis=at)
    if kind == "attention":
        own = module.embed_dim if isinstance(module, nn.MultiheadAttention) else width_of(module)
        wide = own if width is None or not one.attends else width
        if wide is None:
            raise UsageError(
                f"The channels of the keys of {path!r}, a {type(module).__name__}, cannot be told; "
                "give them, of all heads together: Where(..., width=...)."
            )
        return Layer(path, "attention", module, wide, wide, axis=at)
    weight = module._parameters.get("weight")
    if weight is None:
        raise UsageError(f"{path!r}, a {type(module).__name__}, has no weight to adapt.")
    bias = "bias" if module._parameters.get("bias") is not None else None
    if one.kind == "norm":
        channels = weight.numel()
        return Layer(path, "norm", module, channels, channels, "weight", bias, axis=at)
    flipped = one.kind == "embedding" or _is_conv1d(module)
    outputs, inputs = (1, 0) if flipped else (0, 1)
    many = weight.shape[inputs] * int(getattr(module, "groups", 1))
    return Layer(
        path, one.kind, module, many, weight.shape[outputs],
        "weight", bias, None, flipped, at, one.inside,
    )  # fmt: skip


def _projection(path: str, module: nn.MultiheadAttention, axis: int) -> Layer:
    name, width = path.rpartition(".")[2], module.embed_dim
    at = PROJECTIONS.index(name)
    rows = (at * width, (at + 1) * width)
    bias = None if module.in_proj_bias is None else "in_proj_bias"
    if module.in_proj_weight is not None:
        return Layer(
            path, "linear", module, width, width,
            "in_proj_weight", bias, rows, False, axis, module,
        )  # fmt: skip
    raise UsageError(
        f"{path!r} belongs to an nn.MultiheadAttention whose keys or values have another width "
        "than its queries (kdim, vdim); adapt layers of it that are modules, or the block around."
    )


def _kind(module: nn.Module) -> tuple[Kind, str]:
    if isinstance(module, nn.MultiheadAttention):
        return "attention", ""
    if isinstance(module, nn.Linear) or _is_conv1d(module):
        return "linear", ""
    if isinstance(module, nn.modules.conv._ConvTransposeNd | nn.Conv3d):
        return "module", "only nn.Conv1d and nn.Conv2d are adapted as convolutions"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return "conv", ""
    if isinstance(module, nn.Embedding):
        return "embedding", ""
    if isinstance(module, nn.EmbeddingBag):
        return "module", "it adds embeddings up; use nn.Embedding"
    if _is_norm(module):
        return "norm", ""
    return "module", ""


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether it is Hugging Face's Conv1D: a linear layer with its weight stored (I, O)."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or len(module._modules):
        return False
    norms = (nn.LayerNorm, nn.RMSNorm, *CHANNELS_FIRST)
    return isinstance(module, norms) or type(module).__name__.endswith("Norm")


def _batch_second(module: nn.Module) -> bool:
    layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return isinstance(module, layers) and not module.self_attn.batch_first


def _ends(path: str, module: nn.Module) -> tuple[int, int]:
    """Return the inputs of a module's first linear layer, and the outputs of its last one."""
    linear = [m for m in module.modules() if isinstance(m, nn.Linear) or _is_conv1d(m)]
    if linear:
        first, last = (
            layer_of("", Found("linear", m), None, None) for m in (linear[0], linear[-1])
        )
        return first.inputs, last.outputs
    raise UsageError(
        f"The channels of {path!r}, a {type(module).__name__}, cannot be told; give them: "
        "Where(..., width=...)."
    )
