"""What the documentation says is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
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
    while words and hasattr(command, "commands"):
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
