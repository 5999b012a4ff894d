"""Reward models that somebody else trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples.rewards import encoder, make_pairs

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.model_checks import positions
from rlhf_loop.recipe import Policy, Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Prompt, Score
from rlhf_loop.reward_spec import parse_spec, write_spec
from rlhf_loop.rewards import load_reward, load_spec, train_reward_model
from rlhf_loop.rewards.texts import make_text
from rlhf_loop.steps.prepare import check_rewards

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
POLICY = Policy(model="tiny-random:0", dtype="float32")
QUESTION = [{"role": "user", "content": "What is tea?"}]
ANSWERS = ["leaves in hot water", "short", "a much longer answer than the others that goes on and on", "it is tea"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Callable[..., Path]:
    """Gives a folder of a tiny sequence classifier with random weights, and these labels."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def make(*labels: str, template: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("classifier") / "model"
        tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
        torch.manual_seed(len(labels))
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
        model = AutoModelForSequenceClassification.from_pretrained(tiny_policy, **names)
        torch.nn.init.normal_(model.score.weight)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        if not template:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        return folder

    return make


def spec_folder(folder: Path, model: Path | str, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    write_spec(parse_spec({"kind": "pretrained", "model": str(model), **settings}), folder)
    return folder


def own_outputs(model: Path, answer: str) -> list[float]:
    """What transformers alone says of the whole conversation."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    conversation = [*QUESTION, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return classifier(ids).logits[0].tolist()


def test_the_reward_is_the_output_for_the_conversation_in_the_models_own_template(tmp_path, classifier):
    model = classifier("reward")
    reward = load_reward(spec_folder(tmp_path / "rm", model), id="rm", policy=POLICY)
    values = reward([QUESTION] * 4, ANSWERS)
    assert values == pytest.approx([own_outputs(model, answer)[0] for answer in ANSWERS], abs=1e-5)
    assert values == pytest.approx([reward([QUESTION], [answer])[0] for answer in ANSWERS], abs=1e-5)
    assert len(set(values)) == 4


def test_several_outputs_are_weighed_by_label_or_number_and_stand_in_the_breakdown(tmp_path, classifier):
    model = classifier("helpfulness", "correctness", "verbosity")
    prompt = Prompt(id="p", messages=tuple(QUESTION), group="p")
    completion = Completion(id="c", prompt_id="p", text=ANSWERS[0], policy="x", round=0)
    helpful, _, verbose = own_outputs(model, ANSWERS[0])
    for names in (("helpfulness", "verbosity"), (0, 2)):
        outputs = dict(zip(names, (0.7, -0.1), strict=True))
        reward = load_reward(spec_folder(tmp_path / "rm", model, outputs=outputs), id="rm", policy=POLICY)
        (score,) = reward.score([prompt], [completion])
        assert score.value == pytest.approx(0.7 * helpful - 0.1 * verbose, abs=1e-5)
        expected = {str(names[0]): 0.7 * helpful, str(names[1]): -0.1 * verbose}
        assert score.breakdown == pytest.approx(expected, abs=1e-5)


def test_a_pair_is_read_as_the_tokenizer_joins_two_texts(tmp_path, classifier):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = classifier("reward", template=False)
    reward = load_reward(spec_folder(tmp_path / "rm", model, format="pair"), id="rm", policy=POLICY)
    pair = AutoTokenizer.from_pretrained(model)("What is tea?", ANSWERS[0], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(model).eval()(pair["input_ids"]).logits[0]
    assert reward([QUESTION], ANSWERS[:1]) == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_encoder_is_told_which_of_two_texts_a_token_is_of(tmp_path, tiny_policy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model = encoder(tmp_path / "bert", tokenizer)
    reward = load_reward(spec_folder(tmp_path / "rm", tmp_path / "bert", format="pair"), id="rm", policy=POLICY)
    pair = tokenizer("What is tea?", ANSWERS[0], return_tensors="pt")
    with torch.no_grad():
        expected = model(**pair).logits[0]
    assert reward([QUESTION] * 4, ANSWERS)[0] == pytest.approx(expected.item(), abs=1e-5)


def test_over_long_texts_keep_their_end_and_are_counted(tmp_path, classifier, caplog):
    model = classifier("reward")
    reward = load_reward(spec_folder(tmp_path / "rm", model, max_length=12), id="rm", policy=POLICY)
    long, longer = ("tea " * 40 + "end", "water " * 90 + "tea " * 40 + "end")
    first, second = reward([QUESTION] * 2, [long, longer])
    assert first == pytest.approx(second, abs=1e-5)
    assert "2 of 2 texts are longer than 12 tokens" in caplog.text


def test_an_encoder_reads_no_more_tokens_than_it_has_positions_for_and_that_is_said(tmp_path, tiny_policy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model = encoder(tmp_path / "bert", tokenizer)  # of 512 positions
    folder = spec_folder(tmp_path / "rm", tmp_path / "bert", format="pair", max_length=2048)
    with (
        Store.open("sqlite://") as store,
        pytest.warns(UserWarning, match=r"bert reads 512 tokens at most, .* of 2048"),
    ):
        check_rewards(store, Recipe.load(SMOKE, [f"reward.model={folder}"]))
    reward = load_reward(folder, id="rm", policy=POLICY)
    question, answer = [{"role": "user", "content": "water " * 600}], ANSWERS[0]
    tokenizer.truncation_side = "left"
    cut = tokenizer("water " * 600, answer, truncation="only_first", max_length=512, return_tensors="pt")
    assert cut["input_ids"].shape == (1, 512)
    with torch.no_grad():
        assert reward([question], [answer]) == [pytest.approx(model(**cut).logits.item(), abs=1e-5)]


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "xlnet"}, None),
    ],
)
def test_positions_are_those_that_a_text_may_take(config, most):
    assert positions(config) == most


def test_an_over_long_pair_keeps_the_tokens_around_its_texts_and_the_answer(tmp_path, tiny_policy):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    first, last = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, tokenizer.bos_token_id), (last, tokenizer.eos_token_id)],
    )
    model = encoder(tmp_path / "bert", tokenizer)
    folder = spec_folder(tmp_path / "rm", tmp_path / "bert", format="pair", max_length=32)
    reward = load_reward(folder, id="rm", policy=POLICY)

    def expected(asked: list[int], answer: list[int]) -> float:
        ids = [tokenizer.bos_token_id, *asked, tokenizer.eos_token_id, *answer, tokenizer.eos_token_id]
        kinds = [0] * (len(asked) + 2) + [1] * (len(answer) + 1)
        with torch.no_grad():
            return model(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits.item()

    question = [{"role": "user", "content": "water and tea, " * 40 + QUESTION[0]["content"]}]
    asked, answer = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (question[0]["content"], ANSWERS[0]))
    assert len(answer) < 32 - 3
    [value] = reward([question], ANSWERS[:1])
    assert value == pytest.approx(expected(asked[-(32 - 3 - len(answer)) :], answer), abs=1e-5)
    ids = reward._cut(text := make_text(question, "tea " * 90), reward._read(text))["input_ids"]
    assert len(ids) == 32
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_it_is_never_trained_and_measured_on_the_held_out_pairs(tmp_path, classifier):
    folder = spec_folder(tmp_path / "rm", classifier("reward"))
    metrics = train_reward_model(
        load_spec(folder), make_pairs(4), tmp_path / "out", policy=POLICY, eval_pairs=make_pairs(4, seed=1), seed=0
    )
    assert metrics["eval"]["accuracy"]["n"] == 24
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "reward_model.yaml"]
    given = [make_text(QUESTION, ANSWERS[0])]
    ready, measured = (load_reward(path, id="rm", policy=POLICY) for path in (folder, tmp_path / "out"))
    assert measured.values(given, {}) == pytest.approx(ready.values(given, {}), abs=1e-5)


def test_a_run_scores_with_it_and_may_be_judged_by_another_without_feedback_of_its_own(tmp_path, classifier):
    folder = spec_folder(tmp_path / "mine", classifier("good", "long"), outputs={"good": 1.0, "long": -0.5})
    judge = spec_folder(tmp_path / "judge", classifier("reward"))
    overrides = [f"reward.model={folder}", f"evaluation.judge={{kind: reward_model, model: {judge}}}"]
    run = tmp_path / "run"
    Loop(Recipe.load(SMOKE, overrides), run_dir=run).run(rounds=1)
    scores = read_records(run / "round_001" / "score" / "scores.parquet", Score)
    assert scores
    assert all(set(score.breakdown) == {"good", "long"} for score in scores)
    assert all(score.value == pytest.approx(sum(score.breakdown.values())) for score in scores)
    told = read_json(run / "round_001" / "evaluate" / "evaluation.json")["judge"]["name"]
    assert told == "reward model judge, trained by others"


@pytest.mark.parametrize(
    ("labels", "outputs", "said"),
    [
        (("a", "b"), None, "has 2 outputs (a, b): say in reward_model.yaml which make the reward"),
        (("helpful", "safe"), {"helpfull": 1}, "no output `helpfull`; did you mean `helpful`?"),
        (("helpful", "safe"), {"2": 1}, "no output `2`"),
        (("helpful", "safe"), {"helpful": 1, "0": 1}, "two names of one output"),
    ],
)
def test_wrong_outputs_are_refused_before_anything_is_computed(tmp_path, classifier, labels, outputs, said):
    folder = spec_folder(tmp_path / "rm", classifier(*labels), outputs=outputs)
    recipe = Recipe.load(SMOKE, [f"reward.model={folder}"])
    with Store.open("sqlite://") as store, pytest.raises(UserError) as refused:
        check_rewards(store, recipe)
    assert said in str(refused.value)
    with pytest.raises(UserError) as refused:
        load_reward(folder, id="rm", policy=POLICY)
    assert said in str(refused.value)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_computed(tmp_path):
    folder = spec_folder(tmp_path / "rm", tmp_path / "nothing")
    recipe = Recipe.load(SMOKE, [f"reward.model={folder}"])
    with Store.open("sqlite://") as store, pytest.raises(UserError, match=r"no model folder at .*/nothing; `model`"):
        check_rewards(store, recipe)


def test_a_language_model_is_refused_as_its_head_would_be_random(tmp_path, tiny_policy):
    folder = spec_folder(tmp_path / "rm", tiny_policy)
    with pytest.raises(UserError, match=r"is a language model .* its score head would be random"):
        load_reward(folder, id="rm", policy=POLICY)


def test_a_head_that_is_not_in_the_files_is_refused_too(tmp_path, classifier, tiny_policy):
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"score\.weight is not in its files and would be random"):
        load_reward(spec_folder(tmp_path / "rm", model), id="rm", policy=POLICY)


def test_without_a_chat_template_the_error_names_the_other_format(tmp_path, classifier):
    folder = spec_folder(tmp_path / "rm", classifier("reward", template=False))
    with pytest.raises(UserError, match=r"no chat template.*Set `format: pair`"):
        load_reward(folder, id="rm", policy=POLICY)


def test_weights_of_zero_alone_are_refused():
    with pytest.raises(UserError, match="give a weight to at least one"):
        parse_spec({"kind": "pretrained", "model": "m", "outputs": {"a": 0}})
