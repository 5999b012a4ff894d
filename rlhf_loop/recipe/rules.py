"""Which settings of a recipe cannot work together: one small rule each, looked at when the recipe is loaded.

A rule gives what is wrong and what to set instead, or None. To add one: a function here (or with others of its
kind in `rules_of_...`) and its name in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rlhf_loop.cluster import PLATFORMS
from rlhf_loop.engines import LORA_RANKS
from rlhf_loop.errors import UserError
from rlhf_loop.files.store_address import DEFAULT_PROJECT, is_project_name, names_project, project_name
from rlhf_loop.machine import visible_accelerators
from rlhf_loop.recipe.rules_of_critiques import (
    checks_have_a_policy,
    critiques_give_what_the_update_takes,
    losses_of_critiques_have_an_update,
    next_messages_have_a_reader,
    revisions_are_written,
)
from rlhf_loop.recipe.rules_of_endpoints import a_writer_is_named, an_endpoint_is_not_trained, endpoints_are_known
from rlhf_loop.recipe.rules_of_memory import a_quantised_base_has_an_adapter, padding_free_is_padding_free
from rlhf_loop.strategies import STRATEGIES

if TYPE_CHECKING:
    from rlhf_loop.recipe import Recipe


def names_are_known(recipe: Recipe) -> str | None:
    """Rules and strategies are functions of this package, or were put into its tables."""
    from rlhf_loop.annotators.rules import RULES as ANNOTATOR_RULES
    from rlhf_loop.rows.pairs import PAIRS
    from rlhf_loop.rows.questions import QUESTIONS

    named: list[tuple[str, str, Mapping[str, Any]]] = [
        ("pairing.strategy", recipe.pairing.strategy, PAIRS),
        ("feedback.question_strategy", recipe.feedback.question_strategy, QUESTIONS),
    ]
    if (rule := getattr(recipe.feedback.annotator, "rule", None)) is not None:  # not every kind has one
        named.append(("feedback.annotator.rule", rule, ANNOTATOR_RULES))
    if recipe.evaluation.judge.kind == "rule":
        named.append(("evaluation.judge.rule", recipe.evaluation.judge.rule, ANNOTATOR_RULES))
    for where, name, known in named:
        if name not in known:
            return f"{where}: there is no `{name}`; there are: {', '.join(known)}"
    return None


def vllm_can_write(recipe: Recipe) -> str | None:
    """What vLLM does not take of a policy or of settings that the loop's own sampler does."""
    if recipe.generation.engine != "vllm":
        return None
    lora = recipe.update.lora
    if lora is not None and lora.r > LORA_RANKS[-1]:
        return (
            f"update.lora.r: vLLM takes adapters up to rank {LORA_RANKS[-1]}, and this one has {lora.r}; set a lower "
            "one, or `generation.engine: transformers`"
        )
    if lora is not None and recipe.policy.precision == "float32" and visible_accelerators():
        return (
            "policy.dtype: on a GPU vLLM computes adapters in bfloat16 or float16 alone; set `dtype: bfloat16`, "
            "`update.lora: null`, or `generation.engine: transformers`"
        )
    for where, temperature in (
        ("generation", recipe.generation.temperature),
        ("evaluation", recipe.evaluation.temperature or 0.0),
    ):
        if 0 < temperature < 0.01:
            return (
                f"{where}.temperature: vLLM takes none between 0 and 0.01, and this is {temperature}; set 0 (greedy) "
                "or 0.01, or `generation.engine: transformers`"
            )
    return None


def a_rule_judges_only_simulations(recipe: Recipe) -> str | None:
    """The rule knows nothing of what people, or a model, wanted."""
    annotator = recipe.feedback.annotator
    others = recipe.feedback.imports or recipe.feedback.borrows if annotator is None else annotator.kind == "endpoint"
    if recipe.evaluation.judge.kind == "rule" and others:
        return (
            "evaluation.judge: a rule is an honest judge only of a simulation; with feedback of others use "
            "`judge: {kind: reward_model, model: FOLDER}`, and `prompts.judge_fraction: 0.3` where it is trained"
        )
    return None


def a_project_is_of_a_store(recipe: Recipe) -> str | None:
    """It is named in one way, and of a store that others use too."""
    if recipe.store is not None and names_project(recipe.store):
        return "store: name the project of the store as `project: NAME`, not within its URL"
    if recipe.project is not None and recipe.store is None:
        return "project: the store inside a run is that run's alone; name the `store` that the project is one of"
    return None


def sources_of_feedback_can_be_meant(recipe: Recipe) -> str | None:
    """Names are of projects of a store that others use too."""
    names = [project_name(one) for one in recipe.feedback.borrows if is_project_name(one)]
    if names and recipe.store is None:
        return (
            "feedback.from: a name is that of a project of the recipe's `store`, and it has none; give `store`, or the "
            "URL or file of another store"
        )
    if recipe.project in names:
        return f"feedback.from: {recipe.project or DEFAULT_PROJECT} is the run's own project; leave it out"
    return None


def there_are_training_prompts(recipe: Recipe) -> str | None:
    """From files, or from feedback."""
    if not recipe.prompts.train and not recipe.prompts.from_feedback:
        return "prompts: no training prompts; give `prompts.train: [FILE.jsonl]` or `prompts.from_feedback: true`"
    return None


def there_are_held_out_prompts(recipe: Recipe) -> str | None:
    """Of the split that is evaluated on: from files, or from feedback."""
    held_out = recipe.prompts.test if recipe.evaluation.split == "test" else recipe.prompts.dev
    from_feedback = recipe.prompts.from_feedback and recipe.prompts.test_fraction > 0
    imported = any(one.split == "test" for one in recipe.feedback.imports)
    if not held_out and not from_feedback and not imported:
        return (
            f"prompts.{recipe.evaluation.split}: no held-out prompts to evaluate on; give a file of prompts that "
            "are not among the training prompts"
        )
    return None


def what_needs_a_reward_model_has_one(recipe: Recipe) -> str | None:
    """The update, or pairs that are made from scores."""
    consumes = recipe.update.consumes
    if recipe.reward is not None:
        return None
    if recipe.critiques is not None and recipe.critiques.need_fresh:
        return (
            "reward: critiques.fresh and critiques.revisions ask a reward model which answers are better than those "
            "that people complained of; set `reward: {model: FOLDER}` to a folder such as reward_models/frozen_head"
        )
    if consumes in ("prompts", "best_of_n"):
        return (
            f"reward: {recipe.update.algorithm} needs a reward model; set `reward: {{model: FOLDER}}` to a folder "
            "such as reward_models/frozen_head"
        )
    if consumes == "pairs" and "reward" in recipe.pairing.sources:
        return (
            "reward: pairs are also made from a reward model's scores; set `reward: {model: FOLDER}` to a folder "
            "such as reward_models/frozen_head, or `pairing.sources: [feedback]`"
        )
    return None


def samples_are_enough(recipe: Recipe) -> str | None:
    """Where an update compares the samples of a prompt."""
    if recipe.generation.samples_per_prompt >= 2:
        return None
    if recipe.update.consumes == "pairs" and "reward" in recipe.pairing.sources:
        return (
            "generation.samples_per_prompt: pairs are made among a prompt's samples, so at least 2 are needed; "
            "or set `pairing.sources: [feedback]`"
        )
    if recipe.update.consumes == "best_of_n":
        return (
            "generation.samples_per_prompt: rejection_sampling takes the best of a prompt's samples, so at least 2 "
            "are needed"
        )
    return None


def samples_differ(recipe: Recipe) -> str | None:
    """Where an update compares the samples of a prompt; pairs may also come from elsewhere."""
    if recipe.generation.temperature > 0:
        return None
    consumes = recipe.update.consumes
    elsewhere = (
        bool(recipe.feedback.imports or recipe.feedback.borrows or recipe.store)
        and "reward" not in recipe.pairing.sources
    )
    if consumes in ("best_of_n", "prompts") or (consumes == "pairs" and not elsewhere):
        return (
            f"generation.temperature: at 0 all samples of a prompt are equal, and {recipe.update.algorithm} learns "
            "from samples that differ; set it above 0"
        )
    return None


def the_strategy_has_what_it_reads(recipe: Recipe) -> str | None:
    """A reward model, and no fewer samples than are kept."""
    generation = recipe.generation
    strategy = STRATEGIES[generation.strategy]
    if (strategy.scores or strategy.exemplars) and recipe.reward is None:
        return (
            f"generation.strategy: {generation.strategy} goes by a reward model's scores; set `reward: {{model: "
            "FOLDER}` to a folder such as reward_models/frozen_head"
        )
    if strategy.scores and generation.best_of_n.n < generation.samples_per_prompt:
        return (
            f"generation.best_of_n.n: of {generation.best_of_n.n} samples {generation.samples_per_prompt} are to be "
            "kept (generation.samples_per_prompt); set n to more than that"
        )
    return None


def exo_pair_is_smoothed(recipe: Recipe) -> str | None:
    """TRL's loss is not finite without."""
    trainer = recipe.update.trainer_settings()
    losses = trainer.get("loss_type")
    if "exo_pair" in (losses if isinstance(losses, list) else [losses]) and not trainer.get("label_smoothing"):
        return "update.trainer: loss_type exo_pair needs label_smoothing above 0; set `label_smoothing: 0.001`"
    return None


def kto_has_batches(recipe: Recipe) -> str | None:
    """It estimates the KL from the other answers of a batch."""
    size = recipe.update.trainer_settings().get("per_device_train_batch_size")
    if recipe.update.algorithm == "kto" and size == 1:
        return (
            "update.trainer.per_device_train_batch_size: kto compares the answers of a batch with one another; set "
            "2 or more"
        )
    return None


def the_reference_is_one(recipe: Recipe) -> str | None:
    """The loop's, or one that TRL moves along."""
    if recipe.update.reference == "previous" and recipe.update.trainer_settings().get("sync_ref_model"):
        return "update: `reference: previous` and `sync_ref_model: true` contradict; keep one"
    return None


def pairs_have_a_source(recipe: Recipe) -> str | None:
    """Where the update consumes pairs; a store of one's own may hold anything."""
    asks = recipe.feedback.questions_per_round > 0
    if _holds_feedback(recipe) or recipe.update.consumes != "pairs" or "reward" in recipe.pairing.sources or asks:
        return None
    if recipe.critiques is not None and recipe.critiques.gives("pairs"):
        return None
    return (
        "pairing.sources: dpo has no source of pairs: nobody is asked (feedback.questions_per_round is 0) and "
        "nothing is imported; set `pairing.sources: [feedback, reward]`, ask questions, or give "
        "`feedback.imports`"
    )


def labels_have_a_source(recipe: Recipe) -> str | None:
    """Where the update consumes labels; people may give thumbs, a store of one's own may hold them."""
    annotator = recipe.feedback.annotator
    if _holds_feedback(recipe) or recipe.update.consumes != "labels" or annotator is None:
        return None
    if recipe.feedback.questions_per_round > 0 and "thumb" in annotator.gives:
        return None
    return (
        "update.algorithm: kto learns from thumbs, and nobody gives any: set `feedback.annotator.thumbs_above: "
        "0.5` for a simulated annotator that does (and ask questions), or give `feedback.imports` with "
        '{"prompt", "completion", "label"} rows'
    )


def accelerate_is_started_once(recipe: Recipe) -> str | None:
    """By the loop, or by the user."""
    if recipe.accelerate_config is not None and recipe.launch in ("inline", "ranks"):
        return (
            "accelerate_config is for `launch: child`, `slurm` and `kubernetes`, which start Accelerate themselves; "
            f"this is `{recipe.launch}`"
        )
    if recipe.stages and recipe.launch in ("inline", "ranks"):
        return (
            "stages is for `launch: child`, `slurm` and `kubernetes`, which start each by itself; this is "
            f"`{recipe.launch}`"
        )
    if recipe.launch in PLATFORMS and (named := [name for name, stage in recipe.stages.items() if stage.devices]):
        return (
            f"stages.{named[0]}.devices is for `launch: child`; with `launch: {recipe.launch}` the profile's `stages` "
            "says it"
        )
    return None


def a_profile_is_for_jobs(recipe: Recipe) -> str | None:
    """Nothing else submits any."""
    if recipe.cluster_profile is not None and recipe.launch not in PLATFORMS:
        return (
            "cluster_profile says what the jobs of stages ask for: set `launch: slurm` or `launch: kubernetes`, or "
            "name it to `rlhf-loop submit --profile`"
        )
    return None


RULES: tuple[Callable[[Recipe], str | None], ...] = (
    names_are_known,
    endpoints_are_known,
    a_writer_is_named,
    vllm_can_write,
    an_endpoint_is_not_trained,
    a_rule_judges_only_simulations,
    a_project_is_of_a_store,
    sources_of_feedback_can_be_meant,
    there_are_training_prompts,
    there_are_held_out_prompts,
    what_needs_a_reward_model_has_one,
    samples_are_enough,
    samples_differ,
    the_strategy_has_what_it_reads,
    exo_pair_is_smoothed,
    kto_has_batches,
    padding_free_is_padding_free,
    a_quantised_base_has_an_adapter,
    the_reference_is_one,
    pairs_have_a_source,
    labels_have_a_source,
    critiques_give_what_the_update_takes,
    revisions_are_written,
    losses_of_critiques_have_an_update,
    checks_have_a_policy,
    next_messages_have_a_reader,
    accelerate_is_started_once,
    a_profile_is_for_jobs,
)
"""In the order in which they are looked at; the first that is broken is told."""


def check_judge(recipe: Recipe) -> None:
    """Raises `UserError` for a judge that is to be trained and has no feedback that trains nothing else.

    Apart from `RULES`: its folder says whether it is trained, so the recipe's paths must be known. What is wrong with
    the folder itself is told by `steps/prepare.py`."""
    from rlhf_loop.reward_spec import FILE, TrainedSpec, load_spec

    judge = recipe.evaluation.judge
    apart = recipe.prompts.judge_fraction > 0 or any(one.split == "judge" for one in recipe.feedback.imports)
    if judge.kind != "reward_model" or apart or not (judge.model / FILE).is_file():
        return
    if isinstance(load_spec(judge.model), TrainedSpec):
        raise UserError(
            f"evaluation.judge: {judge.model.name} is trained and needs feedback of its own; set "
            "`prompts.judge_fraction: 0.3`, give one of `feedback.imports` the setting `split: judge`, or name a "
            "folder of `kind: function` or `pretrained`, which nothing trains"
        )


def _holds_feedback(recipe: Recipe) -> bool:
    """Whether feedback was collected before; what is in a store of one's own is not known."""
    return bool(recipe.feedback.imports or recipe.feedback.borrows) or recipe.store is not None
