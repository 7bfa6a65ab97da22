"""A library: many LoRA adapters of one base in one folder, listed and composed.

    library = Library("adapters")
    library.add("trained.safetensors")             # all tasks of a file that `save_adapted` wrote
    library.add("peft/summaries", same_base=True)  # a folder of PEFT
    library.compose({"mnli": 0.7, "qnli": 0.3}, Path("both"))

Each adapter is a folder that PEFT reads, with `polytask.json` beside its two files; `library.json`
says which base all of them belong to. A sum of adapters is exact: their factors side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.adapt.peft_files import Factors, Stored, peft_of_file, read_layers
from polytask.errors import DataError, UsageError, unknown
from polytask.merge import AdapterMerge
from polytask.merge.adapter_files import AdapterJob, AdapterWritten, load_adapter
from polytask.merge.progress import Progress
from polytask.peft_folders import CONFIG, WEIGHTS, check_folder, write_folder
from polytask.records import read_json, to_json, write_json

FORMAT = 1
LIBRARY, ENTRY = "library.json", "polytask.json"


@dataclass(frozen=True)
class Entry:
    """One adapter. layers: how many it changes. rank: the largest. numbers: that it holds.
    source: where it was taken from. vouched: nothing but the user's word says that its base is the
    library's. head: the source holds a head for it as well, which is not taken."""

    name: str
    layers: int
    rank: int
    numbers: int
    source: str
    vouched: bool
    head: bool


@dataclass(frozen=True)
class Base:
    """What is known of the base: its fingerprint, and the name that PEFT's folders give it."""

    fingerprint: str = ""
    model: str = ""

    def differs(self, other: Base) -> str:
        """Return what shows that another base is not this one, "" where nothing does."""
        for what, mine, theirs in (
            ("fingerprint", self.fingerprint[:12], other.fingerprint[:12]),
            ("name", self.model, other.model),
        ):
            if mine and theirs and mine != theirs:
                return f"{what} {theirs!r}, and the library's is {mine!r}"
        return ""

    def agrees(self, other: Base) -> bool:
        """Return whether something shows that they are one."""
        return bool(
            (self.fingerprint and self.fingerprint == other.fingerprint)
            or (self.model and self.model == other.model)
        )

    def joined(self, other: Base) -> Base:
        """Return all that is known of both."""
        return Base(self.fingerprint or other.fingerprint, self.model or other.model)


@dataclass(frozen=True)
class Examined:
    """What a folder or file holds, of the library's base. stored: see `Stored`. base: what is known
    of it. vouched: nothing but the user's word says that it is the library's."""

    stored: Stored
    base: Base
    vouched: bool


class Library:
    """A folder of adapters; nothing is written before the first is added."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def base(self) -> Base:
        """Return what is known of the base. Raises UsageError where the folder is no library."""
        path = self.folder / LIBRARY
        if not path.is_file():
            raise UsageError(
                f"{self.folder} is no library of adapters: it has no {LIBRARY}. Begin one with "
                f"`polytask adapters --library {self.folder} add FILE`."
            )
        raw = read_json(path)
        try:
            if raw["format"] != FORMAT:
                raise DataError(
                    f"{path} has the format {raw['format']}; this polytask reads {FORMAT}. Update "
                    "it."
                )
            return Base(str(raw["fingerprint"]), str(raw["model"]))
        except (KeyError, TypeError):
            raise DataError(f"{path} does not say what base the library has; it is damaged.") from (
                None
            )

    def entries(self) -> list[Entry]:
        """Return the adapters, by name."""
        self.base()
        return [self._entry(path.parent) for path in sorted(self.folder.glob(f"*/{ENTRY}"))]

    def add(self, source: str | Path, name: str = "", same_base: bool = False) -> list[Entry]:
        """Take an adapter in, of a PEFT folder, or those of all tasks of a file; return them.

        name: of a folder's adapter, or of the only one of a file; "" takes the folder's own, or the
            tasks'. same_base: the user's word that the base is the library's, where neither
            fingerprint nor name shows it; where they show that it is not, that does not help.
        Raises UsageError for what is no LoRA adapter (DoRA depends on the base), names that are
        taken, and another base.
        """
        source = Path(source)
        examined = self.examine(source, same_base)
        found = examined.stored
        adapters = dict(found.adapters)
        if name and len(adapters) != 1:
            raise UsageError(
                f"{source} holds {len(adapters)} tasks ({', '.join(adapters)}), which keep their "
                "names; leave the name out."
            )
        heads = [task in found.heads for task in adapters]
        if name:
            adapters = dict(zip([name], adapters.values(), strict=True))
        for task in adapters:
            self._check_name(task)
        begun = (self.folder / LIBRARY).exists()
        mine = self.base() if begun else Base()
        joined = mine.joined(examined.base)
        if joined != mine or not begun:
            write_json(
                self.folder / LIBRARY,
                {"format": FORMAT, "fingerprint": joined.fingerprint, "model": joined.model},
            )
        for (task, (config, tensors)), head in zip(adapters.items(), heads, strict=True):
            about = {"source": str(source), "vouched": examined.vouched, "head": head}
            self._write(task, config, tensors, about)
        return [self._entry(self.folder / task) for task in adapters]

    def examine(self, source: str | Path, same_base: bool = False) -> Examined:
        """Return the adapters of a PEFT folder or of a file, whose base is the library's.

        same_base: as in `add`. Raises UsageError for what is no LoRA adapter, and another base.
        """
        source = Path(source)
        found = self._folder(source) if source.is_dir() else peft_of_file(source)
        models = {c.get("base_model_name_or_path") or "" for c, _ in found.adapters.values()}
        theirs = Base(found.base, models.pop())
        begun = (self.folder / LIBRARY).exists()
        mine = self.base() if begun else Base()
        differ = mine.differs(theirs)
        if differ:
            raise UsageError(f"{source} belongs to another base: it has the {differ}.")
        vouched = begun and not mine.agrees(theirs)
        if vouched and not same_base:
            raise UsageError(
                f"{source} does not say that its base is the library's; if it is, say so: "
                "--same-base."
            )
        self._check_shapes(source, found.adapters)
        return Examined(found, theirs, vouched)

    def names(self) -> list[str]:
        """Return the adapters' names, in order. Raises UsageError where there is none."""
        found = [entry.name for entry in self.entries()]
        if not found:
            raise UsageError(
                f"{self.folder} holds no adapter; add some with `polytask adapters --library "
                f"{self.folder} add FILE`."
            )
        return found

    def factors(self, name: str) -> dict[str, Factors]:
        """Return an adapter's factors by layer. Raises UsageError for an unknown name."""
        self._check_known([name])
        ((config, tensors),) = self._folder(self.folder / name).adapters.values()
        return read_layers(config, tensors, name)[0]

    def compose(
        self,
        weights: Mapping[str, float],
        out: Path,
        rank: int | None = None,
        progress: Progress | None = None,
    ) -> AdapterWritten:
        """Write sum of weight * adapter as a PEFT folder; see `AdapterJob.run`.

        rank: reduce to at most this rank, with the error that is said; None is exact.
        """
        self._check_known(weights)
        method = AdapterMerge(tuple(weights.values()), rank)
        return AdapterJob(tuple(self.folder / name for name in weights), method).run(out, progress)

    def _folder(self, source: Path) -> Stored:
        """Return the adapter of a PEFT folder. Raises UsageError where it has more than factors."""
        import safetensors.torch

        check_folder(source)
        config = read_json(source / CONFIG)
        if config.get("use_dora") or load_adapter(source).whole:
            raise UsageError(
                f"{source} holds weights trained as a whole, or is a DoRA adapter; what such an "
                "adapter changes depends on its base, and a library holds none."
            )
        tensors = safetensors.torch.load_file(source / WEIGHTS)
        return Stored("", {source.name: (config, tensors)}, ())

    def _check_known(self, wanted: Iterable[str]) -> None:
        names = {entry.name for entry in self.entries()}
        for name in wanted:
            if name not in names:
                see = f"See `polytask adapters --library {self.folder} list`."
                raise unknown("adapter", name, names, see)

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UsageError(
                f"{name!r} cannot be an adapter's name, whose letters are A to Z, a to z, 0 to 9, "
                "'.', '_' and '-'. Give one with --name."
            )
        if (self.folder / name).exists() or name == LIBRARY:
            raise UsageError(
                f"{self.folder} has an adapter {name!r} already, left as it is; give another name."
            )

    def _check_shapes(self, source: Path, adapters: Mapping[str, tuple[Any, Any]]) -> None:
        """Raise UsageError where a layer has another size than in the library."""
        known: dict[str, tuple[tuple[int, ...], str]] = {}
        for path in sorted(self.folder.glob(f"*/{ENTRY}")):
            for layer, shape in read_json(path)["shapes"].items():
                known[layer] = (tuple(shape), path.parent.name)
        for _, tensors in adapters.values():
            for layer, shape in _shapes(tensors).items():
                if layer in known and known[layer][0] != shape:
                    raise UsageError(
                        f"{source} changes {layer!r}, {shape} there and {known[layer][0]} in "
                        f"{known[layer][1]!r} of the library; their bases differ."
                    )

    def _write(
        self, name: str, config: Any, tensors: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        import json

        import safetensors.torch

        whole = {
            **about,
            "shapes": _shapes(tensors),
            "rank": max(
                (len(v) for n, v in tensors.items() if n.endswith(".lora_A.weight")), default=0
            ),
            "numbers": sum(value.numel() for value in tensors.values()),
        }
        content = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})
        text = json.dumps(to_json(whole)).encode()
        write_folder(self.folder / name, config, content, {ENTRY: text})

    def _entry(self, folder: Path) -> Entry:
        raw = read_json(folder / ENTRY)
        try:
            return Entry(
                folder.name, len(raw["shapes"]), int(raw["rank"]), int(raw["numbers"]),
                str(raw["source"]), bool(raw["vouched"]), bool(raw["head"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{folder / ENTRY} is damaged; add the adapter again.") from None


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return what each layer's factors turn into what: (inputs of A and its kernel, outputs)."""
    end = ".lora_A.weight"
    return {
        name.removesuffix(end): (
            *down.shape[1:],
            tensors[f"{name.removesuffix(end)}.lora_B.weight"].shape[0],
        )
        for name, down in tensors.items()
        if name.endswith(end)
    }
