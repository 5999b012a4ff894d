"""Store, run and keys are their owner's alone: made so under any umask, tightened where they were not."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from itsdangerous import TimestampSigner
from samples.server import client, service, token

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tables, tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import private, write_json
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.access import COOKIE
from rlhf_loop.server.session_key import KEY_VARIABLE, session_key

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=["umask 000", "umask 022", "umask 277"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for secrets, of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return tmp_path / "state" / "rlhf-loop"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_its_owners_alone_under_any_umask(tmp_path: Path, state: Path, umask: None) -> None:
    run = RunDir(tmp_path / "run")
    os.umask(os.umask(0) & 0o077)  # folders of pytest's own are made by now
    with run.locked(), Store.open(run.path / "feedback.db") as store:
        write_json(run.path / "recipe.yaml", {"store": "postgresql://ann:secret@db/x"})
        tokens.create(store, "admin", "boss")
        session_key(store)
        with store.database.read() as connection:
            connection.scalar(sa.select(1))
            made = [run.path, *run.path.iterdir(), state, state / "session_key"]
            assert {"feedback.db", "feedback.db-wal", "feedback.db-shm"} <= {path.name for path in made}
            loose = {path.name: oct(mode(path)) for path in made if mode(path) & 0o077 and path.name != "lock"}
            assert not loose


def test_what_others_could_read_is_tightened_and_said(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked(), Store.open(run.path / "feedback.db") as store:
        tokens.create(store, "admin", "boss")
        files = [run.path, *(run.path / f"feedback.db{end}" for end in ("", "-wal", "-shm"))]
        for path in files:
            path.chmod(0o755 if path.is_dir() else 0o664)
        with pytest.warns(UserWarning, match=r"feedback\.db.*feedback\.db-wal.*now only the owner can"):
            Store.open(run.path / "feedback.db").close()
    with pytest.warns(UserWarning, match="run: now only the owner can"), run.locked():
        pass
    assert [oct(mode(path)) for path in files if path.exists() and mode(path) & 0o077] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        Store.open(run.path / "feedback.db").close()


def test_what_cannot_be_tightened_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "feedback.db"
    Store.open(file).close()
    file.chmod(0o660)
    monkeypatch.setattr(Path, "chmod", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not yours")))
    with pytest.warns(UserWarning, match="cannot be changed"):
        Store.open(file).close()


# -- the key of sessions -----------------------------------------------------------------------------------------------


def cells(store: Store) -> str:
    with store.database.read() as connection:
        return repr([tuple(row) for t in tables.metadata.sorted_tables for row in connection.execute(sa.select(t))])


def test_nothing_in_the_store_makes_an_admins_cookie(store: Store) -> None:
    token(store, "admin")
    served = service(store, open_access=False)
    (admin,) = tokens.listed(store)
    with client(served) as http:
        right = served.sessions.sign(admin.id).decode()
        assert http.get("/v1/models", headers={"Cookie": f"{COOKIE}={right}"}).status_code == 200
        for text in set(re.findall(r"[0-9A-Za-z_-]{8,}", cells(store))):
            for key in (text.encode(), bytes.fromhex(text) if re.fullmatch("([0-9a-f]{2})+", text) else b"?"):
                signer = TimestampSigner(key, salt="session", key_derivation="hmac", digest_method=hashlib.sha256)
                answer = http.get("/v1/models", headers={"Cookie": f"{COOKIE}={signer.sign(admin.id).decode()}"})
                assert answer.status_code in (401, 429)


def test_a_key_that_lay_in_an_old_store_is_gone_and_opens_nothing(store: Store) -> None:
    old = "ab" * 32
    with store.database.write() as connection:
        connection.execute(tables.settings.insert().values(name="session_key", value=old))
    with pytest.warns(UserWarning, match="it is replaced"):
        key = session_key(store)
    assert key != bytes.fromhex(old)
    assert old not in cells(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert session_key(store) == key  # the same after a restart


def test_the_key_is_one_for_each_store_and_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "a.db") as a, Store.open(tmp_path / "b.db") as b:
        first, other = session_key(a), session_key(b)
        assert first != other
        monkeypatch.chdir(tmp_path)
        with Store.open("a.db") as again:
            assert session_key(again) == first
        monkeypatch.setenv(KEY_VARIABLE, "0123456789abcdef" * 2)
        assert len({session_key(a), session_key(b), first, other}) == 4
        assert session_key(a) == session_key(a)
        monkeypatch.setenv(KEY_VARIABLE, "short")
        with pytest.raises(UserError, match="openssl rand"):
            session_key(a)


@pytest.mark.parametrize("damage", ["readable", "cut", "bytes", "link"])
def test_a_secret_that_others_could_read_or_that_is_damaged_is_replaced(state: Path, damage: str) -> None:
    first = private.secret("session_key")
    file = state / "session_key"
    if damage == "readable":
        file.chmod(0o640)
    elif damage == "link":
        file.unlink()
        file.symlink_to(state / "elsewhere")
        with pytest.raises(UserError, match="cannot be kept"):
            private.secret("session_key")
        return
    else:
        file.write_bytes(first[:10].encode() if damage == "cut" else os.urandom(64))
    with pytest.warns(UserWarning, match="replaced"):
        second = private.secret("session_key")
    assert re.fullmatch("[0-9a-f]{64}", second)
    assert second != first
    assert private.secret("session_key") == second
    assert mode(file) == 0o600


def test_many_who_ask_at_once_get_one_secret(state: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(private.secret("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in state.iterdir()] == ["x"]


def test_where_no_secret_can_be_kept_sessions_last_as_long_as_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("no folder")
    with Store.open(tmp_path / "a.db") as store, pytest.warns(UserWarning, match=KEY_VARIABLE):
        assert len(session_key(store)) == 32
