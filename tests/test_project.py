"""The project as people meet it: the wheel, the README's commands and code, links, versions."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import polytask

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()

# Texts that belong to somebody's machine or to the making of a change, not to the project.
# Each pattern is written so that it does not match itself.
FOREIGN = re.compile(
    r"/wor[k]/|/tm[p]/|/hom[e]/|/roo[t]/|[.]librar[y]\b|\bthis sessio[n]\b|\bsub-?agen[t]"
    r"|pyp[i][.]org|pythonhoste[d]|--(extra-)?index-ur[l]",
    re.IGNORECASE,
)


def committed() -> list[Path]:
    """Return the files of the project: those git knows, or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def build(folder: Path, kind: str, **env: str) -> tuple[Path, str]:
    """Build a wheel or an sdist; return its path, and what was said meanwhile."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (path,) = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    return path, built.stdout + built.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel as a machine without a C compiler builds it."""
    path, said = build(tmp_path_factory.mktemp("wheel"), "wheel", CC="no-such-compiler")
    assert path.name.endswith("-py3-none-any.whl")
    assert "all will be done by torch alone, which is slower: there is no C compiler" in said
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel):
    source = ROOT / "src"
    wanted = {str(path.relative_to(source)) for path in committed() if path.is_relative_to(source)}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert "polytask/py.typed" in held


LIBRARY = "polytask/kernels/libkernels.so"
COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_where_there_is_a_compiler_the_wheel_holds_the_kernels_and_is_for_this_platform(
    wheel, tmp_path
):
    path, said = build(tmp_path / "built", "wheel")
    assert "torch alone" not in said
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert path.name.endswith(f"-py3-none-{platform}.whl")
    compiled = zipfile.ZipFile(path)
    assert set(compiled.namelist()) - set(wheel.namelist()) == {LIBRARY}
    # Taken out of the wheel, they are found and give what torch gives.
    compiled.extractall(tmp_path / "site")
    merged = (
        "import torch\n"
        "from polytask import kernels\n"
        "from polytask.merge import TIES, merge\n"
        "base = {'x': torch.arange(9.0)}\n"
        "print(kernels.__file__, kernels.missing() or 'compiled')\n"
        "print(merge(base, [base, {'x': torch.ones(9)}], TIES())['x'].tolist())\n"
    )
    said = []
    for switch in ("1", "0"):
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "POLYTASK_KERNELS": switch}
        command = [sys.executable, "-P", "-c", merged]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        said.append(ran.stdout.splitlines())
    (found, quick), (_, slow) = said
    assert found.startswith(str(tmp_path / "site"))
    assert found.endswith(" compiled")
    assert quick == slow


def test_a_compiler_that_fails_leaves_a_wheel_without_kernels(tmp_path):
    path, said = build(tmp_path, "wheel", CC="false")
    assert path.name.endswith("-py3-none-any.whl")
    assert "by torch alone, which is slower: false failed: exit code 1" in said


def test_the_source_archive_holds_what_compiles(tmp_path):
    path, _ = build(tmp_path, "sdist")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"hatch_build.py", "src/polytask/kernels/merge.c", "Makefile"} <= names
    assert not any(name.endswith(".so") for name in names)


def test_the_wheel_holds_licence_and_command(wheel):
    inside = {
        name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name
    }
    licence = wheel.read(inside["licenses/LICENSE"]).decode()
    assert licence == (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License")
    assert "polytask = polytask.cli:main" in wheel.read(inside["entry_points.txt"]).decode()


def test_the_metadata_keeps_ranges(metadata):
    required = metadata.get_all("Requires-Dist", [])
    core = [line for line in required if "extra ==" not in line]
    assert {re.split(r"[<>=!~\[; ]", line)[0] for line in core} == {
        "click", "numpy", "pyyaml", "rich", "safetensors", "scikit-learn", "scipy", "torch",
        "torchmetrics",
    }  # fmt: skip
    for line in required:
        specifier = line.split(";")[0]
        assert "==" not in specifier, line
        assert "torchvision" not in specifier
    for line in core:
        assert ">=" in line, line
    assert "torch>=2.9" in core
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_the_constraints_pin_all_that_is_required():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins), (
        "exact pins, no local parts"
    )
    assert "torch==2.13.0" in pins
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins}
    assert len(pinned) == len(pins)
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        asked += extra
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in asked} - {"polytask"}
    assert names - pinned == set()


def test_one_version_everywhere(metadata):
    entries = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert entries[0] == polytask.__version__ == PYPROJECT["project"]["version"]
    assert metadata["Version"] == polytask.__version__


def test_the_readme_opens_with_what_it_is_for_then_two_commands():
    opening, quick, *_ = re.split(r"^## ", README, flags=re.MULTILINE)
    assert opening.startswith("# polytask\n\n")
    assert "```" not in opening
    (block,) = blocks(quick, "sh")
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    assert commands == ["make demo", "make test"]


def test_every_python_block_of_the_readme_runs():
    found = blocks(README, "python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_readme_tells_rooms_that_exist_from_those_to_come():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| `")
    ]
    assert rows
    for names, _, state in rows:
        for room in re.findall(r"`(\w+)`", names):
            built = (ROOT / "src" / "polytask" / room / "__init__.py").exists()
            assert state.startswith("built") == built, room


def test_links_between_the_documents_lead_somewhere():
    broken = []
    for page in committed():
        if page.suffix != ".md":
            continue
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_project_speaks_of_itself_alone():
    found = []
    for path in committed():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture or other binary file holds no words
        for number, line in enumerate(text.splitlines(), 1):
            if FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_data_set_and_no_large_file_is_part_of_the_project():
    large = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in committed()
        if path.stat().st_size > 500_000
    }
    assert large == {}


@pytest.mark.parametrize(
    ("ci", "outcome", "because"),
    [
        ("", "1 passed, 2 skipped", ""),
        ("true", "2 failed, 1 passed", "(CI is set: skipping is not allowed)"),
    ],
)
def test_missing_data_skips_a_test_here_and_fails_it_in_ci(tmp_path, ci, outcome, because):
    (tmp_path / "data" / "school").mkdir(parents=True)
    (tmp_path / "data" / "school" / "yes.mat").touch()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "def test_all_there(data_root, require_data):\n"
        "    assert require_data('school', 'school/yes.mat') == data_root\n"
        "def test_one_file_absent(require_data):\n"
        "    require_data('school/yes.mat', 'school/no.mat')\n"
        "def test_all_absent(monkeypatch, request):\n"
        "    monkeypatch.setenv('POLYTASK_DATA', 'nowhere')\n"
        "    request.getfixturevalue('data_root')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "POLYTASK_DATA": str(tmp_path / "data"), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in ran.stdout
    assert f"lacks school/no.mat {because}".rstrip() in ran.stdout
    assert f"set POLYTASK_DATA to the folder that holds the data sets {because}".rstrip() in (
        ran.stdout
    )


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # CI changes what `make check` does, and this test may itself run below make
    hidden = ("CI", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def set_up(tmp_path: Path) -> Path:
    """A folder that looks set up: a Makefile, what it depends on, and a .venv with its stamp."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "polytask").write_text("#!/bin/sh\n")
    (programs / "polytask").chmod(0o755)
    version = sys.version.split()[0]
    (tmp_path / ".venv" / ".ready").write_text(f"{tmp_path} Python {version}\n")
    return tmp_path


def test_make_setup_does_nothing_when_nothing_changed(set_up):
    done = make(set_up, "setup")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("harm", ["no stamp", "moved", "no command", "broken interpreter"])
def test_make_setup_starts_afresh_where_the_environment_is_not_whole(set_up, harm):
    stamp, programs = set_up / ".venv" / ".ready", set_up / ".venv" / "bin"
    if harm == "no stamp":
        stamp.unlink()
    elif harm == "moved":
        stamp.write_text("elsewhere Python 3.11.7\n")
    elif harm == "no command":
        (programs / "polytask").unlink()
    else:
        (programs / "python").unlink()
        (programs / "python").symlink_to("gone")
    done = make(set_up, "setup", "PYTHON=false")  # it asks for Python: it does start afresh
    assert done.returncode == 2
    assert "polytask needs Python 3.11 or later; 'false' is" in done.stderr


@pytest.mark.parametrize(
    "changed",
    ["pyproject.toml", "constraints.txt", "hatch_build.py", "src/polytask/kernels/level.h"],
)
def test_make_setup_installs_once_when_a_requirement_changed(set_up, changed):
    (set_up / changed).parent.mkdir(parents=True, exist_ok=True)
    (set_up / changed).touch()
    os.utime(set_up / ".venv" / ".ready", (2, 2))
    python = set_up / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -V ] && exec {sys.executable} -V\n'
        'echo "$@ under $PIP_CONSTRAINT and $PIP_BUILD_CONSTRAINT" >> asked\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        done = make(set_up, "setup")
        assert done.returncode == 0, done.stderr
    (asked,) = (set_up / "asked").read_text().splitlines()
    assert asked.startswith("-m pip install ")
    assert asked.endswith(" -e .[dev] under constraints.txt and constraints.txt")


def test_an_old_python_is_refused_with_what_to_do(set_up):
    old = set_up / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.18\nexit 1\n')
    old.chmod(0o755)
    (set_up / ".venv" / ".ready").unlink()
    done = make(set_up, "setup", f"PYTHON={old}")
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"polytask needs Python 3.11 or later; '{old}' is Python 3.9.18. "
        "Name another one: make setup PYTHON=python3.12\n"
    )
