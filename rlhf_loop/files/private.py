"""What is its owner's alone: files that nobody else may read, folders that nobody else may enter, secrets of a user.

Everything here is made with its permissions, whatever the umask says, and never has others for a moment. What this
does not protect against: whoever administers the machine, and file systems that know no permissions, which is said.
"""

from __future__ import annotations

import os
import secrets
import stat
import warnings
from contextlib import suppress
from pathlib import Path

from rlhf_loop.errors import UserError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_file(path: Path) -> bool:
    """Makes an empty file that its owner may read and write; False where there is one. Raises `OSError`."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    try:
        if hasattr(os, "fchmod"):  # a umask may have taken rights of the owner
            with suppress(OSError):
                os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    return True


def make_folder(path: Path) -> None:
    """A folder that its owner may enter; one that is there is tightened. Raises `OSError`.

    Folders above it are made as ordinary ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    tighten(path)


def tighten(*paths: Path) -> None:
    """Takes from everybody but the owner what they may do with these files and folders; missing ones are left out.

    Warns of what was changed, and of what cannot be, since it belongs to somebody else.
    """
    changed = []
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & _OTHERS:
                continue
            path.chmod(mode & ~_OTHERS)
            left = stat.S_IMODE(path.stat().st_mode) & _OTHERS
        except FileNotFoundError:
            continue
        except OSError:
            left = _OTHERS
        if left and os.name == "posix":
            warnings.warn(
                f"{path} can be used by other accounts of this machine, and that cannot be changed: it belongs to "
                "somebody else, or its file system knows no permissions. Keep it where you are the owner",
                stacklevel=3,
            )
        elif not left:
            changed.append(str(path))
    if changed:
        warnings.warn(
            f"other accounts of this machine could use {', '.join(changed)}: now only the owner can. For a team, use "
            "PostgreSQL or the service",
            stacklevel=3,
        )


def state_folder() -> Path:
    """Where secrets of this user are kept: `rlhf-loop` in `XDG_STATE_HOME`, or in `~/.local/state`.

    Raises `UserError` for a user without a home.
    """
    chosen = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(chosen):  # the XDG base directory specification: others are to be ignored
        return Path(chosen) / "rlhf-loop"
    try:
        return Path.home() / ".local" / "state" / "rlhf-loop"
    except RuntimeError as error:
        raise UserError(f"no folder for secrets: {error}; set XDG_STATE_HOME") from None


def secret(name: str) -> str:
    """The user's secret of this name, 64 hexadecimal digits in a file of theirs, made when first asked for.

    One that others could read, or that is damaged, is replaced. Raises `UserError` where the file cannot be kept.
    """
    path = state_folder() / name
    try:
        make_folder(path.parent)
        if (kept := _read_secret(path)) is not None:
            return kept
        fresh = path.with_name(f"{name}.{secrets.token_hex(8)}.partial")
        make_file(fresh)
        try:
            fresh.write_text(secrets.token_hex(32))
            try:
                os.link(fresh, path)
            except FileExistsError:  # another process was first
                pass
            except OSError:  # a file system without links
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        if (kept := _read_secret(path)) is not None:
            return kept
    except OSError as error:
        raise UserError(f"{path} cannot be kept ({error.strerror})") from error
    raise UserError(f"{path} cannot be kept: another process replaces it")


def _read_secret(path: Path) -> str | None:
    """What is in the file; None, and it is gone, where it is not a whole secret that only this user could read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, errors="replace") as file:
        state = os.fstat(file.fileno())
        ours = os.name != "posix" or (state.st_uid in (os.geteuid(), 0) and not state.st_mode & _OTHERS)
        text = file.read(100)
    if ours and len(text) == 64 and text.isalnum():
        return text
    warnings.warn(f"{path} was damaged, or other accounts could read it: the secret in it is replaced", stacklevel=3)
    path.unlink(missing_ok=True)
    return None
