"""What the documentation says is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from rlhf_loop.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[str]:
    found = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    found += [c for page in PAGES for c in re.findall(r"`(rlhf-loop [^`]+)`", page.read_text())]
    found += [
        line.lstrip("# ").strip()
        for recipe in (ROOT / "recipes").glob("*.yaml")
        for line in recipe.read_text().splitlines()
        if line.startswith("#   rlhf-loop")
    ]
    return sorted({line.split("#")[0].strip() for line in found if line.startswith("rlhf-loop ")})


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_exists_with_its_options(line: str) -> None:
    words = [word for word in line.split()[1:] if word != "..."]
    command = get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("--"):
        assert "|" in words[0] or words[0] in command.commands, f"no command {words[0]} in `{line}`"
        if "|" in words[0]:
            assert set(words[0].split("|")) <= set(command.commands)
            return
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options | {"--help"}, f"no option {word} in `{line}`"


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name, command in get_command(app).commands.items():
        assert re.search(rf"rlhf-loop {name}\b", text), f"rlhf-loop {name} is not in the docs"
        for inner in getattr(command, "commands", {}):
            assert re.search(rf"\b{name}\b[^\n]*\b{inner}\b", text), f"rlhf-loop {name} {inner} is not in the docs"


def test_extras_that_are_to_be_installed_are_those_of_the_package() -> None:
    files = [*PAGES, *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "rlhf_loop").rglob("*.py")]
    named = {name for file in files for name in re.findall(r"(?:rlhf-loop|WHEEL|'\.)\[([\w,]+)\]", file.read_text())}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "postgres" in named
    assert {one for names in named for one in names.split(",")} <= known.keys()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_python_of_the_api_page_runs(tmp_path: Path, model_cache: Path) -> None:
    for name in ("recipes", "reward_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}\n')
    code = "\n".join(blocks(ROOT / "docs" / "python.md", "python"))
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "out" / "update" / "policy" / "adapter_model.safetensors").exists()


def test_the_ppo_of_the_updates_page_runs(tmp_path: Path, tiny_policy: Path) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "updates.md", "python"))
    for written, small in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_policy)),
        ("4096", "32"),
        ('"out",', '"out", use_cpu=True, max_completion_length=8,'),
    ):
        assert written in code
        code = code.replace(written, small)
    code += "\nassert trainer.state.global_step == 16, trainer.state.global_step"
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_pictures_of_the_readme_are_there_and_small() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', (ROOT / "README.md").read_text())
    assert len(pictures) == 5
    for picture in pictures:
        assert 0 < (ROOT / "".join(picture)).stat().st_size < 200_000


EXAMPLES = {"chosen", "triples", "words", "longest", "praised", "shortest"}
"""Files that pages tell to write."""


def test_files_that_the_pages_name_are_there() -> None:
    folders = r"(?:rlhf_loop|tests|benchmarks|recipes|reward_models|docs|\.ci|\.github)"
    missing = [
        f"{page.name}: {name}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(rf"(?<![\w/])({folders}/[\w./-]*\w)", page.read_text())
        if not (ROOT / name).exists()
        and not re.search(
            r"KIND|reward_models/(short|mine)|/(chosen|triples|words|longest|praised|shortest)\.py|docs/data-export",
            name,
        )
    ]
    papers = (ROOT / "docs" / "papers.md").read_text()
    missing += [
        f"papers.md: {name}"
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", papers)
        if not (ROOT / "rlhf_loop" / name).exists()
    ]
    assert missing == []


def test_modules_and_names_that_the_pages_import_are_there() -> None:
    for page in PAGES:
        if page.name == "migration.md":
            continue
        for module in re.findall(r"\brlhf_loop(?:\.[a-z_0-9]+)+", page.read_text()):
            parts = module.split(".")
            place = ROOT.joinpath(*parts)
            owner = ROOT.joinpath(*parts[:-1])  # of a function of a module
            there = place.is_dir() or place.with_suffix(".py").exists() or owner.with_suffix(".py").exists()
            assert there or parts[-1] in EXAMPLES, f"{page.name} names {module}"


def test_modules_that_moved_are_where_the_page_says() -> None:
    text = (ROOT / "docs" / "migration.md").read_text()
    table = text[text.index("| was | is |") :].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 10
    for was, now in rows:
        old, there = named(was), named(now)
        if now.startswith("the same in"):
            there = [f"{there[0]}.{name.rpartition('.')[2]}" for name in old]
        for name in there:
            place = ROOT / name.replace(".", "/")
            assert place.with_suffix(".py").exists(), f"migration.md names {name}"
        gone = [name for name in old if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()]
        assert gone == [], "migration.md says that these moved"


def named(cell: str) -> list[str]:
    """Modules of a cell, in which `.name` lies beside the one before it."""
    found: list[str] = []
    for name in re.findall(r"`((?:rlhf_loop)?\.[\w.]+)`", cell):
        found.append(found[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return found
