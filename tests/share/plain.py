"""The smallest pieces of the plain loops that architectures are held against."""

import torch


def mlp(experts, e, x):
    """One expert of a stack: linear, ReLU, layer by layer."""
    for weight, bias in zip(experts.weights, experts.biases, strict=True):
        x = torch.relu(x @ weight[e] + bias[e])
    return x


def softmax_mix(logits_RE, outputs):
    """sum_e softmax(logits)_e output_e, by exponentials; None stands for a closed expert."""
    powers = [logits_RE[:, e].exp() for e in range(len(outputs))]
    open_ = [e for e, output in enumerate(outputs) if output is not None]
    total = sum(powers[e] for e in open_)
    return sum((powers[e] / total)[:, None] * outputs[e] for e in open_)


def key(task):
    return f"task_{task}"
