"""What is shipped: an sdist, the wheel built from it, and the command in an environment that has the wheel alone.

Dependencies are lent by the environment that runs the tests (a `.pth` file names its packages), for they are gigabytes;
rlhf-loop itself comes from the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def run(*command: object, **options: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=900, **options
    )  # type: ignore[call-overload]
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
    return str(finished.stdout)


def files(*folders: str) -> set[str]:
    """The files of folders of the checkout, by their paths in it."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_and_the_sdist_hold_every_file_that_a_run_reads(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    package, shipped = files("rlhf_loop"), files("recipes", "reward_models")
    assert {"rlhf_loop/data/trl_fields.json", "rlhf_loop/server/pages/static/annotate.js"} <= package
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert package | {f"rlhf_loop/share/{path}" for path in shipped} <= in_wheel
    extra = {name for name in in_wheel if not name.startswith(("rlhf_loop/share/", "rlhf_loop-"))} - package
    assert not extra, "files in the wheel that the checkout does not have"
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert package | shipped | files("tests", "docs", "benchmarks") <= in_sdist


def test_an_installed_wheel_lays_out_the_recipes_and_runs_one(
    built: tuple[Path, Path], tmp_path: Path, model_cache: Path
) -> None:
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built[1])
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    imported = run(python, "-c", "import rlhf_loop; print(rlhf_loop.__file__)", cwd=tmp_path).strip()
    assert Path(imported).is_relative_to(place), "rlhf-loop is the wheel's"

    command = place / "bin" / "rlhf-loop"
    run(command, "init", "mine", cwd=tmp_path)
    laid_out = {path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.*")}
    assert files("recipes", "reward_models") <= laid_out
    said = run(command, "run", "mine/recipes/smoke.yaml", "rounds=1", cwd=tmp_path)
    assert "runs/smoke/report.html" in said
    assert (tmp_path / "runs" / "smoke" / "report.html").stat().st_size > 10_000
