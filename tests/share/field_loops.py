"""Plain loops of the architectures that read a row's fields; see test_equations."""

import math

import torch

from .plain import key, mlp, softmax_mix


def stem(trunk, features, task):
    def look_up(table):
        vectors = torch.stack([table.weight[row] for row in features["index"]])
        return (vectors * features["row"][:, :, None]).flatten(1)

    def gated(level, name, x):
        return mlp(level.hidden[name], 0, x) if name in level.hidden else x

    x, x_s = {t: look_up(trunk.tables[key(t)]) for t in trunk.tasks}, look_up(trunk.shared_table)
    for level in trunk.levels:
        shared = [mlp(level.shared, e, x_s) for e in range(level.shared.number)]
        own = {t: [mlp(level.own[key(t)], e, x[t]) for e in range(level.number)] for t in x}
        founders = [(t, h) for t in trunk._founders for h in own[t]]
        above = {}
        for t in x:
            outputs = shared + own[t] + [None if o == t else h.detach() for o, h in founders]
            gate = level.gates.linears[key(t)].weight
            above[t] = softmax_mix(gated(level, key(t), x[t] + x_s) @ gate.T, outputs)
        if level.shared_gate is not None:
            parts = level.shared_gate
            hidden = mlp(parts["hidden"], 0, x_s) if "hidden" in parts else x_s
            x_s = softmax_mix(hidden @ parts["last"].weight.T, shared + [h for _, h in founders])
        x = above
    return x[task]


def excitation(part, fields):
    """How much each of the fields (R, F, d) counts: (R, F)."""
    hidden = mlp(part.squeeze, 0, fields.mean(2))
    return 1 / (1 + (-(hidden @ part.excite.weight.T + part.excite.bias)).exp())


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


def norm(module, x):
    return normed(x) * module.weight + module.bias


def apem(trunk, x, task):
    fields = x.reshape(len(x), trunk.fields, -1)
    fields = fields * excitation(trunk.excitation, fields)[:, :, None]
    width, keys, values = trunk.pattern_width, [], []
    for f in range(trunk.fields):
        both = fields[:, f] @ trunk.keys_values.weight.T
        keys.append(both[:, :width])
        values.append(both[:, width:])
    patterns = []
    for query in trunk.queries:
        scores = torch.stack([k @ query for k in keys], 1) / math.sqrt(width)
        y = norm(trunk.attended, query + softmax_mix(scores, values))
        y = y + torch.relu(y @ trunk.change.weight.T + trunk.change.bias)
        patterns.append(norm(trunk.changed, y))
    indicator = trunk.indicators[key(task)]
    powers = [((z @ indicator) / math.sqrt(width)).exp() for z in patterns]
    parts = [len(patterns) * p / sum(powers) for p in powers]
    selected = torch.cat([w[:, None] * z for w, z in zip(parts, patterns, strict=True)], 1)
    return mlp(trunk.networks[key(task)], 0, selected)


def dtrn(trunk, x, task):
    fields = x.reshape(len(x), trunk.fields, -1)
    d, interests = fields.shape[2], []
    for n, entries in enumerate(trunk._entries):
        both = torch.cat([trunk.embeddings[key(task)], trunk.sequences[n]])
        numbers = trunk.hyper.weight @ both + trunk.hyper.bias
        scale1, shift1, scale2, shift2 = (numbers[i * d : (i + 1) * d] for i in range(4))
        queries, keys, values = zip(
            *((fields[:, f] @ trunk.attention.weight.T).split(d, 1) for f in entries), strict=True
        )
        outputs = []
        for i, f in enumerate(entries):
            scores = torch.stack([(queries[i] * k).sum(1) for k in keys], 1) / math.sqrt(d)
            u = normed(fields[:, f] + softmax_mix(scores, values)) * scale1 + shift1
            change = torch.relu(u @ trunk.first.weight.T + trunk.first.bias)
            u = u + change @ trunk.second.weight.T + trunk.second.bias
            outputs.append(normed(u) * scale2 + shift2)
        interests.append(sum(outputs) / len(outputs))
    every = torch.cat([fields, torch.stack(interests, 1)], 1)
    part = trunk.own[key(task)]
    every = every * excitation(part["excitation"], every)[:, :, None]
    return mlp(part["network"], 0, every.flatten(1))
