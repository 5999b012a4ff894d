"""Where copies lie: any file system that fsspec knows, or a repository of the Hugging Face hub.

The hub is not used through fsspec: there each file would be a commit of its own.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol

from rlhf_loop.copies import turns
from rlhf_loop.copies.index import INDEX
from rlhf_loop.copies.turns import Turn
from rlhf_loop.errors import UserError, printable
from rlhf_loop.files import explain_os_error
from rlhf_loop.files.locks import locked

_HUB = re.compile(r"hf://(?:(?P<kind>models|datasets)/)?(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<folder>[^@]+?))?/?")


class Place(Protocol):
    """Files by name; every method raises `UserError` for what goes wrong."""

    name: str  # to be shown: without a password
    folder: Path | None  # on a file system of this machine

    def read_index(self) -> bytes | None:
        """The index; None where there is none, and one could be read."""

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other pushes from changing the place meanwhile: they are refused, or this one where they were first."""

    def claim(self, names: Collection[str], index: bytes) -> None:
        """Begins a copy where there is no index; refuses a place that has files or folders of these names."""

    def put(self, files: Mapping[str, Path], index: bytes) -> None:
        """Puts these files there, and the index after them."""

    def get(self, name: str, path: Path, size: int) -> None:
        """Writes what is there of this name to `path`, whose folder exists; no more than so many bytes."""

    def remove(self, names: Sequence[str]) -> None:
        """Takes files away; those that are not there are no error."""


def open_place(url: str, public: bool = False) -> Place:
    """The place with this URL, as fsspec writes them (`s3://bucket/runs/mine`, `gs://...`, a folder), or
    `hf://OWNER/NAME[/FOLDER]`, `hf://datasets/OWNER/NAME[/FOLDER]` for the hub.

    `public`: let it be a repository that everybody can read. Raises `UserError` for a URL that is none, and for a
    package that its file system needs.
    """
    if url.startswith("hf:"):
        found = _HUB.fullmatch(url)
        if found is None:
            raise UserError(
                f"{url} names no repository: hf://OWNER/NAME, or hf://datasets/OWNER/NAME, and a folder in it"
            )
        return Hub(
            url, found["repo"], "dataset" if found["kind"] == "datasets" else "model", found["folder"] or "", public
        )
    return FileSystem(url)


def shown(url: str) -> str:
    """`url` without a user's name and password, and without a query."""
    return re.split(r"[?#]", _without_user(url), maxsplit=1)[0] if "://" in url else url


def _without_user(text: str) -> str:
    """A text without users and passwords in its URLs, those within others (`simplecache::ftp://...`) too."""
    return re.sub(r"://[^/\s]*@", "://", text)


class FileSystem:
    """A folder of a file system that fsspec knows."""

    def __init__(self, url: str):
        import fsspec
        import fsspec.implementations.local

        if not url:
            raise UserError(f"an empty URL names no place. {_PLACES}")
        self.name = shown(url)
        with _explained(self.name, _PLACES):
            self.system, root = fsspec.core.url_to_fs(url)
        self.root = str(root).rstrip("/")
        if not self.root:
            raise UserError(f"{self.name} names no folder")
        here = isinstance(self.system, fsspec.implementations.local.LocalFileSystem)
        self.folder = Path(self.root).resolve() if here else None
        self.turn: Turn | None = None

    def read_index(self) -> bytes | None:
        """See `Place`."""
        content = io.BytesIO()
        with _explained(self.name):
            try:
                self._copy(INDEX, content, MOST)
            except FileNotFoundError:
                self._check_bucket()
                return None
            return content.getvalue()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Place`."""
        with ExitStack() as stack:
            with _explained(self.name):
                if self.folder is None:
                    self._make_folder(turns.NAME)
                    self.turn = stack.enter_context(Turn(self.system, self._path(turns.NAME), self.name))
                else:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(self.folder / turns.NAME, f"the copy {self.folder}"))
            yield

    def claim(self, names: Collection[str], index: bytes) -> None:
        """See `Place`."""
        with _explained(self.name):
            _refuse_over(self.name, [name for name in names if self.system.exists(self._path(name))])
        self.put({}, index)  # before any file, so that a push that was cut short finds its own

    def put(self, files: Mapping[str, Path], index: bytes) -> None:
        """See `Place`."""
        with _explained(self.name):
            for name, path in files.items():
                self._make_folder(name)
                self.system.put_file(str(path), self._path(name))
            self._make_folder(INDEX)
            if self.turn is not None:
                self.turn.check()
            self.system.pipe_file(self._path(INDEX), index)

    def get(self, name: str, path: Path, size: int) -> None:
        """See `Place`."""
        with _explained(self.name), path.open("wb") as file:
            self._copy(name, file, size)

    def remove(self, names: Sequence[str]) -> None:
        """See `Place`."""
        with _explained(self.name):
            for name in names:
                with suppress(FileNotFoundError):
                    self.system.rm_file(self._path(name))

    def _copy(self, name: str, into: IO[bytes], most: int) -> None:
        with self.system.open(self._path(name), "rb") as file:
            while piece := file.read(_PIECE):
                if (most := most - len(piece)) < 0:
                    raise _larger(self.name, name)
                into.write(piece)

    def _check_bucket(self) -> None:
        """Raises `UserError` where there is no such bucket, in which no folder is one that was not made yet."""
        if self.root.startswith("/") or self.folder is not None or "://" in self.root:
            return  # no bucket: a file system, a page of the web
        bucket = self.root.partition("/")[0]
        try:
            self.system.ls(bucket, detail=False)
        except FileNotFoundError:
            raise UserError(
                f"{self.name}: there is no {bucket}. Make this bucket first, or mend its name, then type the same "
                "command again"
            ) from None
        except PermissionError:  # it is there, and who may read a folder of it need not read the others
            return

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _make_folder(self, name: str) -> None:
        self.system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)


class Hub:
    """A repository of the Hugging Face hub, or a folder in one; each `put` is one commit."""

    def __init__(self, name: str, repo: str, kind: str, folder: str, public: bool):
        from huggingface_hub import HfApi

        self.name, self.public = name, public
        self.folder: Path | None = None
        self.prefix = f"{folder}/" if folder else ""  # within the repository
        self.api = HfApi()
        self.repo: dict[str, Any] = {"repo_id": repo, "repo_type": kind}
        self.head: str | None = None  # the commit that the next one follows: one of somebody else between them ends it

    def read_index(self) -> bytes | None:
        """See `Place`."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

        with _explained(self.name), TemporaryDirectory() as folder:
            try:
                return self._fetched(INDEX, folder, MOST).read_bytes()
            except LocalEntryNotFoundError:  # the hub does not answer
                raise
            except EntryNotFoundError:
                return None
            except RepositoryNotFoundError as error:  # the hub says no more of one that you may not read
                raise UserError(
                    f"{self.name}: there is no such repository, or you may not read it. Log in (`hf auth login`, or "
                    "HF_TOKEN), or make it first, private, then type the same command again"
                ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Place`."""
        with _explained(self.name):
            self._make_repository()
        yield

    def claim(self, names: Collection[str], index: bytes) -> None:
        """See `Place`; each `put` is a commit with its index, so none is put before."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        with _explained(self.name):
            try:
                paths = [file.path for file in self.api.list_repo_tree(recursive=True, **self.repo)]
            except (EntryNotFoundError, RepositoryNotFoundError):
                return
            there = {path.removeprefix(self.prefix).split("/")[0] for path in paths if path.startswith(self.prefix)}
            _refuse_over(self.name, [name for name in names if name in there])

    def put(self, files: Mapping[str, Path], index: bytes) -> None:
        """See `Place`."""
        from huggingface_hub import CommitOperationAdd

        content: dict[str, Path | bytes] = {**files, INDEX: index}
        with _explained(self.name):
            added = [
                CommitOperationAdd(path_in_repo=self.prefix + name, path_or_fileobj=given)
                for name, given in content.items()
            ]
            self._commit(added, f"{len(files)} files of a run")

    def get(self, name: str, path: Path, size: int) -> None:
        """See `Place`."""
        with _explained(self.name):
            with TemporaryDirectory(dir=path.parent) as folder:
                self._fetched(name, folder, size).replace(path)
            path.chmod(0o600)

    def remove(self, names: Sequence[str]) -> None:
        """See `Place`."""
        from huggingface_hub import CommitOperationDelete

        with _explained(self.name):
            there = {file.path for file in self.api.list_repo_tree(recursive=True, **self.repo)}
            paths = [path for name in names if (path := self.prefix + name) in there]
            gone = [CommitOperationDelete(path_in_repo=path) for path in paths]
            if gone:
                self._commit(gone, f"{len(gone)} files removed")

    def _commit(self, operations: list[Any], message: str) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            made = self.api.create_commit(
                operations=operations, commit_message=message, parent_commit=self.head, **self.repo
            )
        except HfHubHTTPError as error:
            if _status(error) != 412:
                raise
            raise UserError(
                f"{self.name}: somebody else changed the repository meanwhile, such as another push. What was copied "
                "before is kept: when that one is done, type the same command again"
            ) from error
        self.head = made.oid

    def _fetched(self, name: str, folder: str, most: int) -> Path:
        """A file within `folder`: the hub's cache would keep what people wrote where no deletion looks for it."""
        wanted: dict[str, Any] = {"filename": self.prefix + name, "local_dir": folder, **self.repo}
        if (self.api.hf_hub_download(**wanted, dry_run=True).file_size or 0) > most:
            raise _larger(self.name, name)
        return Path(self.api.hf_hub_download(**wanted))

    def _make_repository(self) -> None:
        """Makes it, private, where it is not there; refuses one that everybody can read, unless that was allowed."""
        self.api.create_repo(private=not self.public, exist_ok=True, **self.repo)
        found = self.api.repo_info(**self.repo)
        if not self.public and not found.private:
            raise UserError(
                f"{self.name} can be read by everybody, and a run holds what people wrote. Make the repository "
                "private, name another, or say --public"
            )
        self.head = found.sha


MOST = 2**26  # bytes of an index: some 400,000 files
_PIECE = 2**20  # bytes that are copied at a time
_PLACES = "Give a folder, hf://OWNER/NAME, s3://BUCKET/FOLDER or another URL that fsspec knows"
_ALLOWED = "You may not do this there: log in, or have its owner allow it, then type the same command again"
_AGAIN = "What was copied is kept: type the same command again to go on"


def _larger(place: str, name: str) -> UserError:
    return UserError(
        f"{place}/{name} is larger than what was pushed, and was not fetched; delete {INDEX} there, push the run again "
        "from where it is whole, then type the same command again"
    )


def _refuse_over(place: str, names: Sequence[str]) -> None:
    if names:
        raise UserError(
            f"{place} is no copy of a run, and has {names[0]}: nothing was changed. Push to an empty or a new place"
        )


@contextmanager
def _explained(name: str, remedy: str = _AGAIN) -> Iterator[None]:
    """Within it, what a file system's library raises becomes a `UserError`; there are as many kinds as libraries."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name} needs another package: {error}. Install it with pip") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise explain_os_error(error, Path(error.filename or name)) from error
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            raise UserError(
                f"{name} is a file, or lies below one, and a copy is a folder: name another place"
            ) from error
        said = printable(_without_user(" ".join((str(error) or type(error).__name__).split()))[:300])
        if isinstance(error, PermissionError) or _status(error) in (401, 403):
            remedy = _ALLOWED
        raise UserError(f"{name}: {type(error).__name__}: {said}. {remedy}") from error


def _status(error: Exception) -> int | None:
    """Of HTTP, where a server's answer is behind the error."""
    return getattr(getattr(error, "response", None), "status_code", None)
