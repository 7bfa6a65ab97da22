"""Learning to Branch: a tree of layers, found by drawing each node's parent while it trains.

Source: Guo, Lee & Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020,
    https://arxiv.org/abs/2006.01895
Differs from the source: the tree stands on the encoder's features, and not on the inputs. Every
    layer has as many nodes as there are tasks; the nodes of the first read the features, and each
    task's head chooses a node of the last. The temperature falls by the part of the training done
    and not by epochs: from 5 to 0.5, as the source's does over 100 of them. In the warm-up, where
    the source takes every parent with weight 1, a node reads their mean, of one size for any
    number of tasks. Evaluation runs the likeliest tree and nothing else.
Shapes: R = rows, A = asked tasks, N = nodes of a layer that run, I, W = a layer's inputs and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.choice import Cooling, drawn, likeliest
from polytask.share.experts import Experts, Stacked, product, stack
from polytask.share.per_task import PerTask, among, dicts, with_founders
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet

Path = tuple[str, ...]
"""A task's nodes, first layer first; a node bears the name of the task it was made for."""


class LearningToBranch(PerTask):
    """h_{l,t} = relu(layer_{l,t}(h_{l-1,p})), its parent p drawn with probability softmax(alpha).

    In training all nodes run, and a hard Gumbel-softmax draws one parent for each in every pass;
    `at` must be told how far the training is. In evaluation a task runs the nodes of its likeliest
    path. A task added later chooses among the nodes that are there and its own.

    tasks: their names. widths: of the layers. temperature: > 0, of the draws at first, see
    `Cooling`. warmup: in [0, 1], the first part of the training, without draws.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        widths: Sequence[int] = (64, 64),
        temperature: float = 5.0,
        warmup: float = 0.01,
    ) -> None:
        if not tasks or not 0 <= warmup <= 1:
            raise UsageError(
                "Learning to Branch: give at least one task and warmup in [0, 1]; got "
                f"{len(tasks)} tasks and warmup {warmup}."
            )
        super().__init__(inputs, widths[-1] if widths else 0)
        self.warmup, self._widths = warmup, tuple(widths)
        self._cooling = Cooling("Learning to Branch", temperature)
        self._founders = tuple(tasks)
        self._tasks: tuple[str, ...] = ()
        self.networks = nn.ModuleDict()
        self.alpha = nn.ModuleList(nn.ParameterDict() for _ in widths)
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        widths: tuple[int, ...] = (64, 64),
        temperature: float = 5.0,
        warmup: float = 0.01,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        widths: of the layers of the tree. temperature, warmup: of the search. towers: of each
        task's own layers above it.
        """
        trunk = LearningToBranch(
            tasks.names, width, widths=widths, temperature=temperature, warmup=warmup
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def parts(self) -> nn.ModuleList:
        return self.alpha

    def at(self, part: float) -> None:
        self._cooling.at(part)

    def paths(self) -> dict[str, Path]:
        """Return each task's likeliest path: the tree found so far."""
        runs = with_founders(self._tasks, self._founders)
        parents = []
        for layer in range(len(self._widths)):
            chosen = self._logits(layer, runs, runs).argmax(1).tolist()
            parents.append({name: runs[at] for name, at in zip(runs, chosen, strict=True)})
        found = {}
        for task in self._tasks:
            path = [task]
            for parent in reversed(parents):
                path.insert(0, parent[path[0]])
            found[task] = tuple(path[:-1])
        return found

    def branched(self) -> Branched:
        """Return the tree found, with copies of the weights: a plain trunk without a search."""
        paths = self.paths()
        made = Branched(paths, self.inputs, self._widths).to(next(self.parameters()))
        with torch.no_grad():
            for layer in range(len(self._widths)):
                for node in {path[layer] for path in paths.values()}:
                    copied = made.node(layer, node)
                    for mine, theirs in zip(copied, self._node(layer, node), strict=True):
                        mine.copy_(theirs)
        return made

    def stack(self, tasks: Sequence[str]) -> Stacked:
        if not self.training:
            paths = self.paths()
            return stacked_tree([paths[task] for task in tasks], self._node)
        runs = with_founders(tasks, self._founders)
        stacked = stack("networks", [self._network(task) for task in runs])
        for layer in range(len(self._widths)):
            last = layer == len(self._widths) - 1
            logits_AN = self._logits(layer, tasks if last else runs, runs)
            if self._cooling.part < self.warmup:
                open_AN = logits_AN.detach().isfinite().to(logits_AN)
                stacked[f"choice_{layer}"] = open_AN / open_AN.sum(1, keepdim=True)
            else:
                stacked[f"choice_{layer}"] = drawn(logits_AN, self._cooling.temperature)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        if seen is not None:
            seen["rows"] = rows_RD
            seen |= {name: part for name, part in stacked.items() if name.startswith("choice")}
        if "leaf" in stacked:
            return through_tree(stacked, rows_RD)
        rows, layer = rows_RD, 0
        while f"choice_{layer}" in stacked:
            weight, bias = (stacked[f"networks_{layer}_{n}"] for n in ("weight", "bias"))
            own_NRW = product(rows, weight, bias).relu_()
            rows = torch.einsum("an,nrw->arw", stacked[f"choice_{layer}"], own_NRW)
            layer += 1
        return rows

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        runs = with_founders(tasks, self._founders)
        names = tuple(f"node of {task}" for task in runs)
        owners = tuple(None if task in self._founders else task for task in runs)
        last, found = len(self._widths) - 1, []
        through_AN: Tensor | None = None
        for layer in range(last, -1, -1):
            choice_AN = seen.get(f"choice_{layer}")
            if choice_AN is None:
                choice_AN = likeliest(self._logits(layer, tasks if layer == last else runs, runs))
            through_AN = choice_AN if through_AN is None else through_AN @ choice_AN
            weights_RAN = through_AN.expand(len(seen["rows"]), -1, -1)
            found.append(Gate(layer, tuple(tasks), names, owners, weights_RAN))
        return found[::-1]

    def add_task(self, task: str) -> None:
        self.networks[key(task)] = Experts(1, self.inputs, self._widths)
        for alpha in dicts(self.alpha):
            alpha[key(task)] = nn.Parameter(
                torch.ones(len(self._founders) + (task not in self._founders))
            )
        self._tasks = (*self._tasks, task)

    def _logits(self, layer: int, readers: Sequence[str], runs: Sequence[str]) -> Tensor:
        """Return log-probabilities up to a constant, (A, N); -inf for what is never read."""
        count, alpha = len(self._founders), dicts(self.alpha)[layer]
        at = [runs.index(task) for task in readers]
        parts = [
            among(alpha[key(task)], count, n, len(runs))
            for task, n in zip(readers, at, strict=True)
        ]
        logits_AN = torch.stack(parts)
        columns_N = torch.arange(len(runs), device=logits_AN.device)
        at_A1 = torch.tensor(at, device=logits_AN.device)[:, None]
        return logits_AN.masked_fill((columns_N >= count) & (columns_N != at_A1), -math.inf)

    def _node(self, layer: int, task: str) -> tuple[Tensor, Tensor]:
        network = self._network(task)
        return network.weights[layer][0], network.biases[layer][0]


class Branched(Trunk):
    """A fixed tree of layers, linear with ReLU: a task runs the nodes of its path.

    A node that several tasks run is shared; one of a single task is its own. A task added later has
    a branch of its own from the features on.

    paths: task -> its nodes. widths: of the layers.
    """

    def __init__(self, paths: Mapping[str, Path], inputs: int, widths: Sequence[int]) -> None:
        if not paths or any(len(path) != len(widths) for path in paths.values()):
            raise UsageError(
                f"Branched: give at least one task, and to each a path of {len(widths)} nodes, one "
                "per layer."
            )
        super().__init__(inputs, widths[-1] if widths else 0)
        parents: dict[tuple[int, str], str] = {}
        for path in paths.values():
            for layer in range(1, len(path)):
                parent = parents.setdefault((layer, path[layer]), path[layer - 1])
                if parent != path[layer - 1]:
                    raise UsageError(
                        f"Branched: on layer {layer} the node {path[layer]!r} has two parents, "
                        f"{parent!r} and {path[layer - 1]!r}; a tree has one."
                    )
        self._widths = tuple(widths)
        self._paths: dict[str, Path] = {}
        self.nodes = nn.ModuleList(nn.ModuleDict() for _ in widths)
        for task, path in paths.items():
            self._add(task, tuple(path))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def paths(self) -> dict[str, Path]:
        """Return each task's nodes."""
        return dict(self._paths)

    def node(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        """Return the weight (I, W) and the bias (W,) of one node."""
        network = self._layer(layer)[key(name)]
        assert isinstance(network, Experts)
        return network.weights[0][0], network.biases[0][0]

    def stack(self, tasks: Sequence[str]) -> Stacked:
        return stacked_tree([self._paths[task] for task in tasks], self.node)

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        return through_tree(stacked, rows_RD)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the nodes that several tasks run."""
        return [p for users, nodes in self._users().items() if len(users) > 1 for p in nodes]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the nodes that this task alone runs."""
        return self._users().get(frozenset((task,)), [])

    def add_task(self, task: str) -> None:
        # Any text is the name of a task, and of a node too.
        name = task
        while any(name in path for path in self._paths.values()):
            name += "'"
        self._add(task, (name,) * len(self._widths))

    def _add(self, task: str, path: Path) -> None:
        sizes = zip((self.inputs, *self._widths), self._widths, strict=False)
        for layer, (node, (before, after)) in enumerate(zip(path, sizes, strict=True)):
            if key(node) not in self._layer(layer):
                self._layer(layer)[key(node)] = Experts(1, before, (after,))
        self._paths[task] = path

    def _users(self) -> dict[frozenset[str], list[nn.Parameter]]:
        """Return the parameters of nodes by the tasks that run them."""
        users: dict[tuple[int, str], set[str]] = {}
        for task, path in self._paths.items():
            for layer, node in enumerate(path):
                users.setdefault((layer, node), set()).add(task)
        found: dict[frozenset[str], list[nn.Parameter]] = {}
        for (layer, node), tasks in users.items():
            parameters = self._layer(layer)[key(node)].parameters()
            found.setdefault(frozenset(tasks), []).extend(parameters)
        return found

    def _layer(self, layer: int) -> nn.ModuleDict:
        nodes = self.nodes[layer]
        assert isinstance(nodes, nn.ModuleDict)
        return nodes


def stacked_tree(
    paths: Sequence[Path], node: Callable[[int, str], tuple[Tensor, Tensor]]
) -> Stacked:
    """Return the nodes of these paths, each once, for `through_tree`.

    node: layer, name -> its weight (I, W) and bias (W,).
    """
    stacked: Stacked = {}
    above: dict[str, int] = {}
    for layer in range(len(paths[0])):
        parent_of = {path[layer]: path[layer - 1] for path in paths}
        made = [node(layer, name) for name in parent_of]
        stacked[f"tree_{layer}_weight"] = torch.stack([weight for weight, _ in made])
        stacked[f"tree_{layer}_bias"] = torch.stack([bias for _, bias in made])
        device = made[0][0].device
        if layer:
            at = [above[parent] for parent in parent_of.values()]
            stacked[f"tree_{layer}_parent"] = torch.tensor(at, device=device)
        above = {name: n for n, name in enumerate(parent_of)}
        stacked["leaf"] = torch.tensor([above[path[layer]] for path in paths], device=device)
    return stacked


def through_tree(stacked: Stacked, rows_RD: Tensor) -> Tensor:
    """Return what the leaf of each path gives, (A, R, W)."""
    rows, layer = rows_RD, 0
    while f"tree_{layer}_weight" in stacked:
        if layer:
            rows = rows.index_select(0, stacked[f"tree_{layer}_parent"])
        weight, bias = (stacked[f"tree_{layer}_{n}"] for n in ("weight", "bias"))
        rows, layer = product(rows, weight, bias).relu_(), layer + 1
    return rows.index_select(0, stacked["leaf"])
