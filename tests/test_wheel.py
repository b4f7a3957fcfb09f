"""What users get is the wheel: it carries its templates, weights and static files, and builds a board on its own."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEDGER_NEEDS = ("click", "jinja2", "pandas", "pydantic", "scipy")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, so that nothing lying around can help."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = run("git", "ls-files", "-z", "hpm_robustbench", "pyproject.toml", "README.md", "LICENSE", cwd=ROOT)
    for name in filter(None, tracked.split("\0")):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, folder / "source", cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_data_file_and_nothing_else_than_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tracked = run("git", "ls-files", "hpm_robustbench", cwd=ROOT).split()
    assert {name for name in names if ".dist-info/" not in name} == set(tracked)
    assert any(name.endswith("digits-resnet.safetensors") for name in names)


def test_a_clean_environment_builds_the_committed_board_from_the_wheel_without_torch(
    wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "clean", with_pip=True)
    binaries = tmp_path / "clean" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    run(*pip, *LEDGER_NEEDS, cwd=tmp_path)
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    printed = run(binaries / "hpm-bench", "leaderboard", "build", cwd=tmp_path)
    index = tmp_path / "leaderboard" / "index.html"
    assert printed == f"page: {Path('leaderboard/index.html')}\n"
    assert index.read_bytes() == (ROOT / "leaderboard" / "index.html").read_bytes()
    assert "torch" not in run(binaries / "python", "-m", "pip", "list", cwd=tmp_path)
    assert "Carmon2019Unlabeled" in run(binaries / "hpm-bench", "list", cwd=tmp_path)
