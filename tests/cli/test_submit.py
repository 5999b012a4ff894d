"""`rlhf-loop submit`: profiles, what is rendered and submitted, what is refused, and what `status` says of it."""

from __future__ import annotations

import json
import re
import subprocess
from inspect import signature
from pathlib import Path

import pytest
from samples.stub_slurm import StubSlurm

from rlhf_loop.cli import app
from rlhf_loop.cluster import PLATFORMS, platform
from rlhf_loop.cluster.commands import answer, last_line
from rlhf_loop.cluster.jobs import Away
from rlhf_loop.cluster.per_stage import PerStage
from rlhf_loop.cluster.scripts import Call, render
from rlhf_loop.cluster.slurm_profile import Profile, read_profile
from rlhf_loop.errors import UserError
from rlhf_loop.files.locks import locked
from rlhf_loop.kept_recipe import check_recipe
from rlhf_loop.recipe import Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.settings import read_yaml, write_yaml
from rlhf_loop.stages import STAGES

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
SHIPPED = ROOT / "recipes" / "cluster" / "profile.yaml"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubSlurm:
    monkeypatch.chdir(tmp_path)
    return StubSlurm(tmp_path / "slurm", monkeypatch)


def submit(*words: str | Path) -> None:
    app(["submit", str(SMOKE), *map(str, words)], standalone_mode=False)


def options(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def is_bash(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_the_shipped_profile_is_valid_and_asks_for_what_it_says() -> None:
    profile = read_profile(SHIPPED)
    assert profile.options() == [
        "--account=my-project", "--partition=gpu", "--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64",
        "--time=08:00:00", "--ntasks-per-node=1",
    ]  # fmt: skip
    assert {"--nodes=1", "--time=01:00:00", "--gpus-per-node=8"} <= set(profile.options("score"))
    assert {"--account=my-project", "--partition=cpu", "--mem=4G", "--time=1-00"} <= set(profile.steering_options())
    assert not any("gpus" in option for option in profile.steering_options())


def test_a_stage_can_have_its_own_of_all_that_jobs_ask_for() -> None:
    assert set(PerStage.model_fields) == set(STAGES)
    own = {"partition": "long", "gpus_per_node": "a100:4", "mem": "480G", "sbatch": ["--exclude=n7"]}
    profile = Profile.model_validate({"sbatch": ["--comment=x"], "stages": {"update": own}})
    assert {"--partition=long", "--gpus-per-node=a100:4", "--mem=480G", "--exclude=n7"} <= set(
        profile.options("update")
    )
    assert "--comment=x" not in profile.options("update")
    assert "--comment=x" in profile.options("generate")
    assert not any("gpus" in option for option in Profile(gpus_per_node=0).options())


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("gpu_per_node: 8", "unknown key `gpu_per_node`; did you mean `gpus_per_node`?"),
        ("stages: {updte: {}}", "unknown key `stages.updte`; did you mean `update`?"),
        ("stages: {update: {node: 2}}", "unknown key `stages.update.node`; did you mean `nodes`?"),
        ("steering: {gpus_per_node: 1}", "unknown key `steering.gpus_per_node`"),
        ("nodes: 0", "`nodes`: Input should be greater than or equal to 1"),
        ("time: 90", "`time`: Input should be a valid string"),
        ("time: 8 hours", "write hours:minutes:seconds, as in 08:00:00"),
        ("time: '60'", "write hours:minutes:seconds, as in 08:00:00"),
        ("mem: much", "'much' is no amount of memory; write it as in 480G"),
        ("gpus_per_node: many", "neither a number nor a kind and a number, as in a100:8"),
        ("partition: gpu --exclusive", "would not stay one word of an #SBATCH line"),
        ("sbatch: [exclusive]", "is no option of sbatch; write one a line, such as --exclude=n17"),
        ("sbatch: [--job-name=mine]", "'--job-name=mine' is said by rlhf-loop, which finds its jobs and their logs by"),
        ("stages: {score: {sbatch: [-d singleton]}}", "'-d singleton' is said by rlhf-loop"),
        ("env: {A-B: x}", "'A-B' is no name of an environment variable"),
        ("env: {'X=1; rm': x}", "'X=1; rm' is no name of an environment variable"),
        ("- nodes", "must hold a mapping of settings, as in recipes/cluster/profile.yaml"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_its_place_and_the_remedy(
    tmp_path: Path, written: str, sentence: str
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(written)
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        read_profile(file)
    assert str(refused.value).startswith(str(file))


def test_a_profile_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("nodes: 2")
    with pytest.raises(UserError, match=r"no profile at .*profiles\.yaml \(did you mean .*profile\.yaml\?\)"):
        read_profile(tmp_path / "profiles.yaml")


def test_times_of_yaml_stay_texts_and_numbers_numbers() -> None:
    text = "[12:00:00, 08:00:00, 1:30.5, 5e-4, 1_000, 0x1F, 007, -3, .inf, 1.5]"
    read = read_yaml(text, "it")
    assert read == ["12:00:00", "08:00:00", "1:30.5", 5e-4, 1000, 31, 7, -3, float("inf"), 1.5]
    assert read_yaml(write_yaml(read), "it") == read


@pytest.mark.parametrize(
    ("platform_word", "other", "keys"),
    [
        ("--slurm", "kubernetes/profile.yaml", "image, service_account, runtime, volume"),
        ("--slurm", "skypilot/profile.yaml", "accelerators, disk, spot, managed, copies"),
        ("--kubernetes", "profile.yaml", "account, partition, cpus_per_task, time"),
        ("--skypilot", "profile.yaml", "account, partition, gpus_per_node, cpus_per_task"),
    ],
)
def test_the_profile_of_another_kind_of_cluster_is_told_in_one_sentence(
    platform_word: str, other: str, keys: str
) -> None:
    profile = SHIPPED.parent / other
    with pytest.raises(UserError, match=rf"{re.escape(str(profile))} is no profile of the kind .* nothing of {keys}"):
        app(["submit", str(SMOKE), platform_word, "--profile", str(profile), "--dry-run"], standalone_mode=False)


@pytest.mark.parametrize(("folder", "line"), [("a#b", '"a#b/o"'), ("it's a", '"it\'s a/o"'), ("plain", "plain/o")])
def test_a_folder_stays_one_value_of_an_sbatch_line(folder: str, line: str) -> None:
    script = render("slurm.sh", [], Profile(), name="x", output=f"{folder}/o", calls=[Call(words=["r"], variables={})])
    assert f"#SBATCH --output={line}" in script.splitlines()


def test_a_folder_that_sbatch_would_read_otherwise_is_refused() -> None:
    for folder in ('a"b', "a\\b", "a\nb"):
        with pytest.raises(UserError, match="cannot stand in an #SBATCH line"):
            render("slurm.sh", [], Profile(), name="x", output=folder, calls=[Call(words=["r"], variables={})])


def test_one_job_for_all_is_the_shipped_script_with_the_profiles_head(
    slurm: StubSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit("--slurm", "--profile", SHIPPED, "--set", "nodes=4", "--set", "env.WORD=a $b 'c'", "seed=3", "--rounds", "1")
    script = slurm.script("1")
    assert is_bash(script)
    assert {"--nodes=4", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@180"} <= set(options(script))
    assert f"--output={tmp_path}/runs/smoke/logs/slurm-%j.out" in options(script)
    head, _, body = script.partition("set -euo pipefail\n")
    assert body == (ROOT / "recipes" / "cluster" / "slurm.sh").read_text().partition("set -euo pipefail\n")[2]
    assert f"set -- {SMOKE} seed=3 --run-dir {tmp_path}/runs/smoke --rounds 1" in head.splitlines()
    assert 'source "$HOME/rlhf/.venv/bin/activate"' in head.splitlines()
    ran = (
        head.replace("module load", "true").replace('source "$HOME', 'true "$HOME') + 'echo "$WORD|$RLHF_LOOP_LOGS|$5"'
    )
    said = subprocess.run(["bash"], input=ran, text=True, capture_output=True).stdout
    assert said == f"a $b 'c'|{tmp_path}/runs/smoke/logs|1\n".replace("|1\n", "|--rounds\n")
    told = capsys.readouterr().out
    assert "submitted job 1\n" in told
    assert f"tail -F {tmp_path}/runs/smoke/logs/slurm-1.out" in told
    assert "scancel 1" in told
    assert "status runs/smoke" in told


def test_each_stage_a_job_keeps_the_profile_as_it_is_in_the_run(slurm: StubSlurm, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "partition: gpu\ngpus_per_node: 4\ncontainer: apptainer exec x.sif\nstages: {update: {nodes: 2}}"
    )
    submit("--slurm", "--stages", "--profile", profile, "--set", "time=02:00:00")
    kept = tmp_path / "runs" / "smoke" / "cluster.yaml"
    profile.write_text("nodes: 99")
    assert read_profile(kept).options("update")[:3] == ["--partition=gpu", "--nodes=2", "--gpus-per-node=4"]
    assert "--time=02:00:00" in read_profile(kept).options()
    script = slurm.script("1")
    assert is_bash(script)
    assert "--cpus-per-task=1" in options(script)
    assert not any("gpus" in option for option in options(script))
    assert f"--run-dir {tmp_path}/runs/smoke cluster_profile={kept}\n" in script
    assert 'rlhf-loop run "$@" launch=slurm --stay' in script


def test_a_recipe_that_says_slurm_is_steered_with_its_own_profile(slurm: StubSlurm, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("steering: {mem: 6G}")
    submit("--slurm", "launch=slurm", "cluster_profile=mine.yaml")
    assert "--mem=6G" in options(slurm.script("1"))


def test_a_recipe_that_starts_its_own_children_is_started_on_all_ranks(slurm: StubSlurm, tmp_path: Path) -> None:
    config = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    submit("--slurm", "launch=child", f"accelerate_config={config}")
    script = slurm.script("1")
    assert "launch=child" in script
    assert re.search(r"launch=child .*launch=auto ", script)
    assert f"export RLHF_LOOP_ACCELERATE_CONFIG={config}" in script


def test_a_sweep_is_an_array_of_runs(slurm: StubSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit("--slurm", "--sweep", "seed=5,6", "--sweep", "update.trainer.beta=0.1,0.2")
    script = slurm.script("1")
    assert is_bash(script)
    assert "--array=0-3" in options(script)
    assert f"--output={tmp_path}/runs/smoke-logs/slurm-%A_%a.out" in options(script)
    choice = script[script.index("case ") : script.index("esac") + 4] + '\necho "$RLHF_LOOP_LOGS: $*"'
    for number, (seed, beta) in enumerate([(5, 0.1), (5, 0.2), (6, 0.1), (6, 0.2)]):
        run = tmp_path / "runs" / f"smoke-seed-{seed}-beta-{beta}"
        said = subprocess.run(
            ["bash"], input=choice, text=True, capture_output=True, env={"SLURM_ARRAY_TASK_ID": str(number)}
        ).stdout
        assert said == f"{run}/logs: {SMOKE} seed={seed} update.trainer.beta={beta} --run-dir {run}\n"
        assert json.loads((run / "job.json").read_text())["id"] == f"1_{number}"
        assert f"status runs/{run.name}" in capsys.readouterr().out or number
    assert slurm.ids == ["1"]


def test_a_dry_run_shows_all_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm is needed
    submit("--slurm", "--stages", "--dry-run")
    told = capsys.readouterr().out
    assert "# runs/smoke/cluster.yaml\n" in told
    assert "#SBATCH --job-name=rlhf-loop-smoke\n" in told
    assert told.endswith(f"# the command\nsbatch --parsable {tmp_path}/runs/smoke/logs/submitted.sh\n")
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_or_a_cluster_named_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no sbatch on the PATH.*login node"):
        submit("--slurm")
    with pytest.raises(UserError, match="name the cluster to submit to: --slurm"):
        submit()
    with pytest.raises(UserError, match=r"you named --slurm and --kubernetes$"):
        submit("--kubernetes", "--slurm")


def test_a_command_of_a_cluster_has_an_answer_in_time_or_is_away() -> None:
    assert answer(["bash", "-c", "cat; echo why. >&2; exit 3"], 10, given="a") == (3, "a", "why.\n")
    assert last_line("first\n  the reason. \n\n") == "the reason"
    with pytest.raises(Away, match=r"^sleep gave no answer in 0 seconds$"):
        answer(["sleep", "5"], 0.1)
    with pytest.raises(UserError, match=r"^there is no nothing-of-this-name on the PATH$"):
        answer(["nothing-of-this-name"], 10)


def test_each_platform_is_asked_by_what_was_written_down_of_a_job() -> None:
    for name in PLATFORMS:
        for question in ("state", "alive"):
            assert list(signature(getattr(platform(name), question)).parameters) == ["record"], name


def test_a_run_that_is_submitted_or_in_use_is_refused(slurm: StubSlurm, tmp_path: Path) -> None:
    submit("--slurm")
    with pytest.raises(UserError, match="submitted already, as job 1, which has not ended"):
        submit("--slurm")
    slurm.becomes("1", "FAILED", code=1)
    with (
        locked(tmp_path / "runs" / "smoke" / "lock", "the run"),
        pytest.raises(UserError, match="is in use by process"),
    ):
        submit("--slurm")
    submit("--slurm")
    assert slurm.ids == ["1", "2"]
    slurm.is_of_another("2")  # Slurm began to count anew
    submit("--slurm")
    assert slurm.ids == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ('{"platform": "slurm", "id": "3"}', "missing 2 required keyword-only arguments: 'what' and 'logs'"),
        ('{"platform": "lsf", "id": "3", "what": "x", "logs": "y"}', "it names no platform: 'lsf'"),
    ],
)
def test_a_damaged_note_of_a_job_is_told_with_what_to_do(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match=rf"job\.json is damaged \(.*{why}.*\); delete it: only which job was") as told:
        app(["status", str(tmp_path)], standalone_mode=False)
    assert str(told.value).startswith(str(tmp_path))


def test_a_run_of_another_recipe_is_refused(slurm: StubSlurm, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "smoke"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(Recipe.load(SMOKE, ["seed=1"]).to_yaml())
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        submit("--slurm")
    assert slurm.ids == []


def test_what_slurm_refuses_and_does_not_answer_is_told(slurm: StubSlurm) -> None:
    (slurm.folder / "refused").write_text("Invalid partition name specified")
    with pytest.raises(UserError, match=r"Slurm refused the job: .*Invalid partition name"):
        submit("--slurm", "--set", "partition=gup")
    (slurm.folder / "refused").unlink()
    (slurm.folder / "lost").touch()
    with pytest.raises(UserError, match="is not known: look with `squeue --me --name=rlhf-loop-smoke`"):
        submit("--slurm")


def test_status_tells_of_a_job_before_the_run_has_begun_and_of_its_stage(
    slurm: StubSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "smoke"
    submit("--slurm", "--stages")
    capsys.readouterr()

    def status(*words: str) -> str:
        app(["status", str(run), *words], standalone_mode=False)
        return capsys.readouterr().out

    assert status().splitlines() == [
        "slurm job 1 (steering): PENDING Priority, attempt 0",
        f"  logs: {run}/logs",
    ]
    (run / "recipe.yaml").write_text(Recipe.load(SMOKE, []).to_yaml())
    (run / "logs" / "slurm-1" / "attempt-2").mkdir(parents=True)
    slurm.becomes("1", "RUNNING", restarts=2, nodes="n7")
    stage = {"platform": "slurm", "id": "9", "what": "round 1, update", "logs": f"{run}/logs", "key": "k"}
    (run / "round_001").mkdir()
    (run / "round_001" / "update.job.json").write_text(json.dumps(stage))
    told = status()
    assert f"slurm job 1 (steering): RUNNING n7, attempt 2\n  logs: {run}/logs/slurm-1/attempt-2\n" in told
    assert "slurm job 9 (round 1, update): GONE, attempt 0\n" in told
    assert [job["state"] for job in json.loads(status("--json"))["jobs"]] == ["RUNNING", "GONE"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "slurm job 1 (steering): state unknown here" in status()


def test_what_auto_is_follows_the_nodes_of_the_stages_and_not_the_machine_that_steers(tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text("gpus_per_node: 8")
    recipe = Recipe.load(SMOKE, ["policy.dtype=auto", "launch=slurm", f"cluster_profile={tmp_path / 'gpu.yaml'}"])
    in_force = check_recipe(recipe, RunDir(tmp_path / "run"))
    assert (in_force.policy.dtype, in_force.policy.attn_implementation) == ("bfloat16", None)
    (tmp_path / "gpu.yaml").write_text("gpus_per_node: 0")
    assert check_recipe(recipe, RunDir(tmp_path / "run")).policy.attn_implementation == "grouped"
