"""A wheel, installed in a clean environment, is a working dfl with everything it needs inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
CONTRACTS = ("VnxToken", "NodeRegistry", "AssetRegistry", "TrainingJobs", "ScoreBoard", "RewardDistributor")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment that holds the wheel and nothing of the checkout.

    The dependencies come from this environment's site-packages by PYTHONPATH, where no .pth file is read and
    so the editable install is not seen; installing torch once more would take minutes.
    """
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=120)
    return venv / "bin"


def run(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment
    )
    return done.stdout.strip()


def test_the_wheel_runs_from_a_clean_environment(installed: Path, tmp_path: Path) -> None:
    assert run([str(installed / "dfl-node"), "--version"], tmp_path).endswith("0.1.0")
    where = run([str(installed / "python"), "-c", "import dfl_node; print(dfl_node.__file__)"], tmp_path)
    assert Path(where).is_relative_to(installed.parent)


def test_the_wheel_carries_the_contracts_it_deploys(installed: Path, tmp_path: Path) -> None:
    program = (
        "import json, importlib.resources as r; d = r.files('dfl_ledger') / 'abi'; "
        "print(json.dumps({p.name: len(json.loads(p.read_text())['bytecode']) "
        "for p in d.iterdir() if p.name.endswith('.json')}))"
    )
    sizes = json.loads(run([str(installed / "python"), "-c", program], tmp_path))
    assert {name.removesuffix(".json") for name in sizes} == set(CONTRACTS)
    assert min(sizes.values()) > 1000


def test_the_wheel_finds_its_applications(installed: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.metadata import entry_points; "
        "print([e.load().name for e in entry_points(group='dfl.apps')])"
    )
    assert run([str(installed / "python"), "-c", program], tmp_path) == "['digits']"


def test_the_wheel_puts_only_its_three_packages_at_the_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"dfl_node", "dfl_ledger", "dfl_apps"}
