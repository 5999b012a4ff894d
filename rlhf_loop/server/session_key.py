"""What the cookies of pages are signed with."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import warnings

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.keys import forget_key
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import private

KEY_VARIABLE = "RLHF_LOOP_SESSION_KEY"
"""Names the secret that sessions are signed with, for services that share them or keep no files."""


def session_key(store: Store) -> bytes:
    """What the service signs the cookies of its pages with: never in the store, which others may read.

    It is made of `RLHF_LOOP_SESSION_KEY`, or of the user's own secret (`private.secret`), and of the store's name, so
    a cookie of one store is worth nothing at another. Where no file can be kept it lasts as long as the process.
    A key that an earlier version left in the store is deleted: who could read it could make cookies.
    Raises `UserError` for a variable that is too short to be a secret.
    """
    if forget_key(store.database, _OLD_KEY):
        warnings.warn(
            f"the key that sessions are signed with lay in {store.name}, where others may have read it: it is "
            "replaced, and pages ask for a login again",
            stacklevel=2,
        )
    given = os.environ.get(KEY_VARIABLE, "")
    if given and len(given) < 32:
        raise UserError(f"{KEY_VARIABLE} is too short for a secret; give 32 characters or more (openssl rand -hex 32)")
    if store.database.is_sqlite and store.database.path is None:
        return secrets.token_bytes(32)
    try:
        master = given or private.secret("session_key")
    except UserError as error:
        warnings.warn(f"{error}: pages ask for a login again after each start; or set {KEY_VARIABLE}", stacklevel=2)
        return secrets.token_bytes(32)
    path = store.database.path
    name = os.path.realpath(path) if path is not None else store.name
    return hmac.new(master.encode(), f"session {name}".encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


_OLD_KEY = "session_key"
