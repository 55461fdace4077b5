"""The package as others install it: its wheel, what it declares, and its version."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from machine import HAS_C
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import psp
from psp.files import ROOT

SOURCES = {".py", ".c", ".cpp", ".h"}


def tracked(*paths):
    """Files of the repository that git knows or would add, relative to it."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--no-cache-dir", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build in place would leave its folders here, and might take old ones up."""
    folder = tmp_path_factory.mktemp("build")
    for name in tracked("psp", "pyproject.toml", "README.md", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def run_time(requirements):
    """Names of those that are needed without any extra on this machine."""
    parsed = map(Requirement, requirements or ())
    return {canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


def all_below(names):
    """Distributions of these names and all that they need themselves, as they are installed here."""
    found, todo = {}, set(names)
    while todo:
        name = todo.pop()
        found[name] = distribution(name)
        todo |= run_time(found[name].requires) - set(found)
    return found.values()


@pytest.fixture(scope="module")
def python(wheel, metadata, tmp_path_factory):
    """Python of an environment with the wheel and, linked from here, what it declares: nothing else can be imported."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for known in all_below(run_time(metadata.get_all("Requires-Dist"))):
        for name in {path.parts[0] for path in known.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(known.locate_file(name)).resolve())
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


@pytest.fixture(scope="module")
def said(python, tmp_path_factory):
    """By elsewhere.py, which stands in no folder that it can import from."""
    folder = tmp_path_factory.mktemp("elsewhere")
    script = shutil.copy(ROOT / "tests" / "elsewhere.py", folder)
    freeze = ["freeze"] if HAS_C else []
    done = subprocess.run([python, "-I", script, *freeze], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_holds_every_source_of_the_package_and_its_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {name for name in tracked("psp") if Path(name).suffix in SOURCES}
    assert {name for name in names if not re.search(r"\.dist-info/", name)} == sources
    assert {Path(name).suffix for name in sources} >= {".py", ".c", ".cpp"}
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_an_installed_package_prunes_extracts_and_freezes_from_another_folder(said, python):
    assert Path(said["file"]).is_relative_to(python.parents[1])
    before, after = said["params"]
    assert after < 0.7 * before
    assert said["extracted"] < 1e-4
    assert said.get("frozen", 0) < 1e-3


def test_what_is_declared_is_used_and_what_is_not_is_not_there(said, python, metadata):
    declared = run_time(metadata.get_all("Requires-Dist"))
    assert declared <= set(said["loaded"])
    undeclared = ["sklearn", "pandas", "torchvision", "PIL", "scipy", "yaml", "onnx", "dvc"]
    assert all(map(importlib.util.find_spec, undeclared)), "they are installed where the tests run"
    code = f"import importlib.util; print([n for n in {undeclared} if importlib.util.find_spec(n)])"
    assert subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_needs_an_extra_names_it(said):
    for name, message in zip(("sklearn", "PIL|torchvision", "torchvision"), said["without_extra"], strict=True):
        assert re.match(rf"({name}) is not installed; it comes with an extra .*: pip install '\.\[data\]'", message)


def test_the_version_is_the_same_everywhere(said, metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {psp.__version__, said["version"], metadata["Version"], citation["version"], latest[1]}
    assert versions == {psp.__version__}
    assert latest[2] == str(citation["date-released"])
    assert {metadata["License-Expression"], citation["license"]} == {"MIT"}


def test_every_dependency_is_pinned_with_hashes_and_no_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    names = {Requirement(line).name for lines in (project["dependencies"], *extras) for line in lines} - {"psp"}
    pinned = (ROOT / "requirements.txt").read_text()
    assert "://" not in pinned
    for name in names:
        assert re.search(rf"^{name}==\S+.*\\\n    --hash=sha256:", pinned, re.MULTILINE), f"{name} is not pinned"
    assert not re.search(r"^psp\b", pinned, re.MULTILINE), "another package of this name"


def test_importing_the_package_imports_no_more_than_it_needs():
    """Every stage and notebook kernel pays for it: torchvision and torch's compiler take a second."""
    code = "import sys, psp; print({'torchvision', 'torch._dynamo', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
