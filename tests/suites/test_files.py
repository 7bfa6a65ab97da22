"""Files are found in a stated order, refused when changed; missing ones say how to get them."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.request
from pathlib import Path

import pytest

from polytask.errors import DataError
from polytask.suites import files
from polytask.suites.files import DataFile

CONTENT = b"a,b\n1,2\n"
URL = "https://example.org/set/table.csv"


def declared(name: str = "table.csv", content: bytes = CONTENT, url: str | None = None) -> DataFile:
    return DataFile("set", name, hashlib.sha256(content).hexdigest(), "the authors' page", url)


def put(root: Path, file: DataFile, content: bytes = CONTENT) -> Path:
    path = root / file.folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty POLYTASK_DATA, an empty cache, and no network."""
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.setenv("POLYTASK_DATA", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_verified", set())
    answer(monkeypatch, OSError("no network in tests"))
    return root


def answer(monkeypatch: pytest.MonkeyPatch, reply: bytes | OSError) -> list[str]:
    """Let every download give `reply`; return the list the asked addresses are added to."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if isinstance(reply, OSError):
            raise reply
        return io.BytesIO(reply)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_the_named_folder_comes_before_the_cache(data: Path) -> None:
    file = declared()
    cached = put(files.cache(), file)
    assert files.find(file) == cached
    named = put(data, file)
    assert files.find(file) == named


def test_the_folder_beside_the_checkout_is_found_from_inside_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = declared()
    beside = put(tmp_path / "shared" / "data", file)
    inside = tmp_path / "checkout" / "src"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert files.present(file) is None, "POLYTASK_DATA, where set, takes its place"
    monkeypatch.delenv("POLYTASK_DATA")
    assert files.find(file) == beside


def test_a_missing_file_says_which_from_where_and_how(data: Path) -> None:
    file = declared()
    with pytest.raises(DataError) as caught:
        files.read(file)
    text = str(caught.value)
    for part in ("set/table.csv", "the authors' page", file.sha256, "POLYTASK_DATA", str(data)):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "content",
    [CONTENT[:-3], b"", bytes([CONTENT[0] ^ 1]) + CONTENT[1:], CONTENT + b"\n"],
    ids=["truncated", "empty", "one bit flipped", "longer"],
)
def test_a_changed_file_is_refused_by_name_with_both_sums(data: Path, content: bytes) -> None:
    file = declared()
    path = put(data, file, content)
    with pytest.raises(DataError) as caught:
        files.read(file)
    text = str(caught.value)
    for part in (str(path), file.sha256, hashlib.sha256(content).hexdigest(), "the authors' page"):
        assert part in text


def test_a_file_is_hashed_once_until_it_changes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    sha256 = hashlib.sha256

    def counting(content: bytes) -> object:
        hashed.append(len(content))
        return sha256(content)

    file = declared()
    put(data, file)
    monkeypatch.setattr(hashlib, "sha256", counting)
    assert files.read(file) == files.read(file) == CONTENT
    assert len(hashed) == 1
    put(data, file, b"changed after it was read")
    with pytest.raises(DataError, match="truncated or changed"):
        files.read(file)


def test_a_download_is_checked_and_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = declared(url=URL)
    asked = answer(monkeypatch, CONTENT)
    assert files.present(file) is None
    assert files.read(file) == CONTENT
    assert files.find(file) == files.cache() / "set" / "table.csv"
    assert files.read(file) == CONTENT
    assert asked == [URL], "the second read takes the kept file"
    assert [path.name for path in (files.cache() / "set").iterdir()] == ["table.csv"]


def test_a_wrong_download_is_refused_and_not_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, b"an error page")
    with pytest.raises(DataError, match=URL):
        files.read(declared(url=URL))
    assert not files.cache().exists()


def test_a_failed_download_says_why_and_how_to_do_without(data: Path) -> None:
    with pytest.raises(DataError, match="no network in tests") as caught:
        files.find(declared(url=URL))
    assert "POLYTASK_DATA" in str(caught.value)
    assert URL in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    answer(monkeypatch, CONTENT)
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        files.find(declared(url=URL))


def test_text_is_unpacked_where_the_name_says_so(data: Path) -> None:
    packed = gzip.compress("é\n".encode(), mtime=0)
    file = declared("text.gz", packed)
    put(data, file, packed)
    assert files.read_text(file) == "é\n"
    plain = declared("text", "é\n".encode())
    put(data, plain, "é\n".encode())
    assert files.read_text(plain) == "é\n"
