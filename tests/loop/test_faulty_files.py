"""Whatever happened to a file of a run, a command works or says in a sentence which file it is and what mends it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples.faults import (
    DAMAGES,
    command,
    copied,
    damage,
    files_of,
    follow,
    reading_commands,
    results,
    run_words,
    unlike,
)

from rlhf_loop import Loop, Recipe
from rlhf_loop.models.training import TrainingLog

HOW = list(DAMAGES)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> dict[str, Path]:
    """One run: after round 1, stopped in the update of round 2, and finished."""
    folder = tmp_path_factory.mktemp("faults")
    run = folder / "run"
    words = run_words(run)
    recipe = Recipe.load(words[1], words[2:-2])
    Loop(recipe, run_dir=run).run(rounds=1)
    shown = TrainingLog.on_step_end

    def stop(self: TrainingLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shown(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            Loop(recipe, run_dir=run).run()
    (folder / "stopped").mkdir()
    stopped = copied(run, folder / "stopped")
    Loop(recipe, run_dir=run).run()
    return {"stopped": stopped, "finished": run}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service ends when it has begun."""
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [one.close() for one in sockets])


def told(sentence: str, file: Path, run: Path) -> bool:
    """Whether a sentence names the file, or the table of the store that is in it, and something to do."""
    return str(run / file) in sentence and any(
        word in sentence for word in ("delete", "put ", "Put ", "restore a copy", "type the same")
    )


def looked_at(
    run: Path, files: list[Path], how: Iterator[str], names: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> list[str]:
    """What went wrong where one file after the other was damaged and commands read the run."""
    place.mkdir()
    commands = {name: words for name, words in reading_commands(run, place).items() if name in names}
    sound = {}
    for name, words in commands.items():
        sound[name] = command(capfd, *words)
        assert sound[name].code == 0, sound[name].error
    wrong = []
    for file in files:
        held, damaged = (run / file).read_bytes(), next(how)
        for name, words in commands.items():
            shutil.rmtree(place / "exported", ignore_errors=True)
            damage(run / file, damaged)
            try:
                ended = command(capfd, *words)
            except Exception as error:
                wrong.append(f"{file}, {damaged}, {name}: {type(error).__name__}: {error}")
                continue
            finally:
                (run / file).write_bytes(held)
            if ended.code == 2:
                if not told(ended.sentence, file, run) or "Traceback" in ended.error:
                    wrong.append(f"{file}, {damaged}, {name}: {ended.error}")
            elif difference := unlike(ended, sound[name], run):
                wrong.append(f"{file}, {damaged}, {name}: {difference}")
    return wrong


def test_commands_that_read_a_run_name_the_damaged_file_and_its_remedy(
    stages: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(stages["finished"], tmp_path)
    names = ["status", "policy list", "feedback stats", "watch"]
    files = [Path(name) for name in ("recipe.yaml", "places.json", "feedback.db", "round_001/manifest.json")]
    files += [Path("round_002") / name for name in (
        "update.arguments.json", "update/manifest.json", "update/policy/adapter_model.safetensors",
        "evaluate/evaluation.json", "gate/decision.json", "snapshot/feedback.parquet", "snapshot/state.json",
    )]  # fmt: skip
    assert not looked_at(run, files, itertools.cycle(HOW), names, tmp_path / "place", capfd)


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("round_001/update/policy/adapter_model.safetensors", "inside"),
        pytest.param("round_002/snapshot/pairs.parquet", "other kind", marks=pytest.mark.slow),
        pytest.param("round_002/update.partial/train_log.jsonl", "no text", marks=pytest.mark.slow),
        pytest.param("recipe.yaml", "cut", marks=pytest.mark.slow),
    ],
)
def test_what_the_sentence_says_mends_the_run(
    stages: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, how: str
) -> None:
    run = copied(stages["stopped"], tmp_path)
    damage(run / file, how)
    assert mended(run, Path(file), capfd) == ""
    assert results(run) == results(stages["finished"])


def mended(run: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs, does what it is told and runs again; gives what went wrong."""
    try:
        ended = command(capfd, *run_words(run))
        if ended.code == 0:
            return ""
        if not told(ended.sentence, file, run) or "Traceback" in ended.error:
            return ended.error
        if not follow(ended.sentence, run):
            return f"it tells nothing to do: {ended.sentence}"
        ended = command(capfd, *run_words(run))
        return "" if ended.code == 0 else f"after the remedy: {ended.error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize("shift", range(len(HOW)))
def test_every_file_damaged_in_every_way_and_every_command_that_reads(
    stages: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], shift: int
) -> None:
    run = copied(stages["finished"], tmp_path)
    how = itertools.islice(itertools.cycle(HOW), shift, None)
    names = [*reading_commands(run, tmp_path)]
    assert not looked_at(run, files_of(run), how, names, tmp_path / "place", capfd)


@pytest.mark.slow
def test_every_file_damaged_and_the_run_goes_on(
    stages: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong, whole, how = [], results(stages["finished"]), itertools.cycle(HOW)
    for file in files_of(stages["stopped"]):
        if file.name == "feedback.db":  # for a copy
            continue
        place = tmp_path / "run_of_one"
        place.mkdir()
        run, damaged = copied(stages["stopped"], place), next(how)
        damage(run / file, damaged)
        went_wrong = mended(run, file, capfd)
        try:
            same = results(run) == whole
        except ValueError as error:  # a manifest that nobody needed
            same = str(run / file) in str(error)
        if went_wrong or not same:
            wrong.append(f"{file}, {damaged}: {went_wrong or 'it ends otherwise'}")
        shutil.rmtree(place)
    assert not wrong, "\n".join(wrong)
