"""The pictures of the eight tasks, and those of the pretraining, at 32 x 32 with three channels.

Read from six folders of the data: cifar10, fashion_mnist (its 10,000 test pictures, which are split
here anew), mnist10k, usps, pneumoniamnist and omniglot_small1.

Shapes: N = pictures, H, W = 32.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from found import cifar10
from torch import Tensor
from torch.nn import functional

from polytask.errors import need
from polytask.suites.files import DataFile, read
from polytask.tasks import Binary, Multiclass, Task, TaskSet

SIDE = 32
PRETRAINING = 25_000
"""The first rows of CIFAR-10's training pictures are for the pretraining, the others for tasks."""

TRAIN, VAL, TEST = 4_000, 600, 1_000
"""At most so many pictures of a task."""

FILES = {
    "fashion": ("fashion_mnist", "t10k-images-idx3-ubyte.xz", "t10k-labels-idx1-ubyte.gz"),
    "mnist": ("mnist10k", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    "usps": ("usps", "usps.h5"),
    "pneumonia": ("pneumoniamnist", "pneumoniamnist.npz"),
    "omniglot": ("omniglot_small1", "images_background_small1.zip"),
}
SUMS = {
    "fashion_mnist/t10k-images-idx3-ubyte.xz": (
        "71ae66111fd2e3cdb756540204618466dce199d1f8e510115450b87712b13ff2"
    ),
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
    "mnist10k/t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "mnist10k/t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
    "usps/usps.h5": ("734f88c541104a956d88be2c95d03b4a463ffd74ccc2ba9c80841fb98e3fcb36"),
    "pneumoniamnist/pneumoniamnist.npz": (
        "a554d2332488d3ddc075125e66a1af77ec379fd2bafc09108ab95a37e2bd9c26"
    ),
    "omniglot_small1/images_background_small1.zip": (
        "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4"
    ),
}
ALPHABETS = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
CIFAR = {"vehicles": (0, 1, 8, 9), "bird_cat_deer": (2, 3, 4), "dog_frog_horse": (5, 6, 7)}
"""Which classes of CIFAR-10 (in the alphabetical order of their names) are a task."""

TASKS = TaskSet(
    [
        Task("fashion", Multiclass(10)),
        Task("mnist", Multiclass(10)),
        Task("usps", Multiclass(10)),
        Task("pneumonia", Binary()),
        Task("omniglot", Multiclass(len(ALPHABETS))),
        *(Task(name, Multiclass(len(classes))) for name, classes in CIFAR.items()),
    ]
)


@dataclass(frozen=True)
class Pictures:
    """Bytes (N, 3, 32, 32) and class indices (N,)."""

    pixels: Tensor
    labels: Tensor

    def rows(self, index: Tensor) -> Pictures:
        return Pictures(self.pixels[index], self.labels[index])

    def floats(self, device: str) -> Tensor:
        """Return the pictures in [0, 1] on a device."""
        return self.pixels.to(device).float() / 255

    def target(self, task: str, device: str) -> Tensor:
        """Return the raw target as the task's kind takes it."""
        labels = self.labels.to(device)
        return labels.float() if isinstance(TASKS.named(task).kind, Binary) else labels


Splits = dict[str, Pictures]
"""train, val, test."""


def load() -> tuple[Pictures, dict[str, Splits]]:
    """Return the pictures of the pretraining, and every task's splits.

    No picture of the pretraining is in any task, and no picture is in two splits.
    """
    train, test = (Pictures(*cifar10(split)) for split in ("train", "test"))
    rest = train.rows(torch.arange(PRETRAINING, len(train.labels)))
    sets: dict[str, Splits] = {}
    for name in ("fashion", "mnist"):
        whole = _idx(name)
        order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(0))
        sets[name] = _cut(whole.rows(order[:7_000]), whole.rows(order[7_000:]))
    sets["usps"] = _cut(*_usps())
    sets["pneumonia"] = _pneumonia()
    sets["omniglot"] = _omniglot()
    for name, classes in CIFAR.items():
        sets[name] = _cut(_only(rest, classes), _only(test, classes))
    return train.rows(torch.arange(PRETRAINING)), {task: sets[task] for task in TASKS.names}


def _cut(rest: Pictures, test: Pictures) -> Splits:
    """Return splits of at most the sizes above, each a seeded draw."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(rest.labels), generator=generator)
    last = torch.randperm(len(test.labels), generator=generator)
    return {
        "train": rest.rows(order[VAL : VAL + TRAIN]),
        "val": rest.rows(order[:VAL]),
        "test": test.rows(last[:TEST]),
    }


def _only(pictures: Pictures, classes: tuple[int, ...]) -> Pictures:
    at = torch.isin(pictures.labels, torch.tensor(classes)).nonzero()[:, 0]
    new = torch.full((10,), -1)
    new[list(classes)] = torch.arange(len(classes))
    chosen = pictures.rows(at)
    return Pictures(chosen.pixels, new[chosen.labels])


def _bytes(name: str, index: int) -> bytes:
    folder, *files = FILES[name]
    file = files[index]
    return read(DataFile(folder, file, SUMS[f"{folder}/{file}"], f"the set {folder}"))


def _three(gray_NHW: Tensor) -> Tensor:
    """Return gray pictures of any size as bytes (N, 3, 32, 32)."""
    x = gray_NHW[:, None].float()
    x = functional.interpolate(
        x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
    return x.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def _idx(name: str) -> Pictures:
    packed = _bytes(name, 0)
    unpacked = lzma.decompress(packed) if packed[:1] == b"\xfd" else gzip.decompress(packed)
    pixels = np.frombuffer(unpacked, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(gzip.decompress(_bytes(name, 1)), np.uint8, offset=8)
    return Pictures(_three(torch.from_numpy(pixels.copy())), torch.from_numpy(labels.astype(int)))


def _pneumonia() -> Splits:
    found = np.load(io.BytesIO(_bytes("pneumonia", 0)), allow_pickle=False)
    splits = {}
    for split, most in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        pixels = torch.from_numpy(found[f"{split}_images"][:most])
        labels = torch.from_numpy(found[f"{split}_labels"][:most, 0].astype(int))
        splits[split] = Pictures(_three(pixels), labels)
    return splits


def _omniglot() -> Splits:
    image = need("PIL.Image", "images", "The experiment on merging")
    drawings: dict[str, list[tuple[Tensor, int]]] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(io.BytesIO(_bytes("omniglot", 0))) as packed:
        for name in sorted(packed.namelist()):
            if not name.endswith(".png"):
                continue
            alphabet = ALPHABETS.index(name.split("/")[1])
            drawer = int(name.rsplit("_", 1)[1].removesuffix(".png"))  # 1 to 20
            split = "train" if drawer <= 13 else "val" if drawer <= 16 else "test"
            white = np.asarray(image.open(io.BytesIO(packed.read(name))).convert("L"))
            drawings[split].append((torch.from_numpy(255 - white), alphabet))
    splits = {}
    for split, found in drawings.items():
        pixels, labels = zip(*found, strict=True)
        splits[split] = Pictures(_three(torch.stack(pixels)), torch.tensor(labels))
    order = torch.randperm(len(splits["val"].labels), generator=torch.Generator().manual_seed(3))
    return splits | {"val": splits["val"].rows(order[:VAL])}


def _usps() -> tuple[Pictures, Pictures]:
    """Return train and test of the one HDF5 file, whose layout its checksum makes sure of."""
    whole = _bytes("usps", 0)
    found = []
    for pixels_at, labels_at, rows in ((0x8BB5C, 0x2235C7, 7_291), (0x27884F, 0x2C6757, 2_007)):
        gray = _array(whole, pixels_at, (rows, 256), "<f4") * 255
        labels = _array(whole, labels_at, (rows,), "<i4")
        pixels = torch.from_numpy(gray.reshape(-1, 16, 16))
        found.append(Pictures(_three(pixels), torch.from_numpy(labels.astype(int))))
    return found[0], found[1]


def _array(whole: bytes, at: int, shape: tuple[int, ...], kind: str) -> Any:
    """Return an array of an HDF5 file, from the leaves of the tree that lists its chunks.

    at: of the first leaf. Each entry of a leaf is the packed size, a mask, the first index in every
    dimension (and a 0), and where the packed bytes are.
    """
    chunks = dict(_chunks(whole, at, len(shape)))
    sides = [
        min((start[axis] for start in chunks if start[axis]), default=shape[axis])
        for axis in range(len(shape))
    ]
    size = len(next(iter(chunks.values()))) // np.dtype(kind).itemsize
    if len(shape) == 1:
        sides = [size]
    array = np.zeros(shape, kind)
    for start, content in chunks.items():
        block = np.frombuffer(content, kind).reshape(sides)
        place = tuple(slice(s, s + side) for s, side in zip(start, sides, strict=True))
        room = array[place].shape
        array[place] = block[tuple(slice(length) for length in room)]
    return array


def _chunks(whole: bytes, at: int, axes: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    nothing = 0xFFFF_FFFF_FFFF_FFFF
    key = 8 + 8 * (axes + 1)
    while at != nothing:
        entries, _, right = struct.unpack_from("<HQQ", whole, at + 6)
        for i in range(entries):
            entry = at + 24 + i * (key + 8)
            size = struct.unpack_from("<I", whole, entry)[0]
            start = struct.unpack_from(f"<{axes}Q", whole, entry + 8)
            address = struct.unpack_from("<Q", whole, entry + key)[0]
            yield start, zlib.decompress(whole[address : address + size])
        at = right


def digest(sets: dict[str, Splits]) -> str:
    """Return a checksum over all pictures and labels, to see that two machines read the same."""
    found = hashlib.sha256()
    for splits in sets.values():
        for pictures in splits.values():
            found.update(pictures.pixels.numpy().tobytes())
            found.update(pictures.labels.numpy().tobytes())
    return found.hexdigest()[:16]
