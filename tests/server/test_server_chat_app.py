"""The example application against a service on a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples.server import file_store, on_a_socket, service, token, with_chat

APP = Path(__file__).parents[2] / "recipes" / "chat_app" / "app.py"


def test_a_chat_with_thumbs_ends_in_feedback_and_a_stop_loses_nothing(tmp_path: Path) -> None:
    served = service(file_store(tmp_path), open_access=False)
    with_chat(served)
    secret = token(served.store, "app")
    said = "red green\n+ just right\nr\n- too long\n= red, green\nand blue?\n\n"
    with on_a_socket(served) as url:
        finished = subprocess.run(
            [sys.executable, APP],
            input=said,
            env={**os.environ, "CHAT_URL": url, "CHAT_TOKEN": secret},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("thank you") == 4
    assert "red green says base 0" in finished.stdout
    kinds = [(record.kind, record.comment) for record in served.store.feedback()]
    assert kinds == [("thumb", "just right"), ("implicit", None), ("thumb", "too long"), ("edit", None)]
    first, again, more = served.store.completions()
    assert first.prompt_id == again.prompt_id != more.prompt_id
    assert len({prompt.group for prompt in served.store.prompts()}) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "rlhf-loop token create"),
        ({"CHAT_TOKEN": "no such"}, "is no token"),
        ({"CHAT_URL": "ROOT", "CHAT_TOKEN": "SECRET"}, "set CHAT_URL to http"),
        ({"CHAT_URL": "http://127.0.0.1:9/v1"}, "nothing answers at http://127.0.0.1:9/v1"),
    ],
)
def test_without_a_token_or_a_service_there_is_a_sentence(tmp_path: Path, given: dict[str, str], said: str) -> None:
    served = service(file_store(tmp_path), open_access=False)
    with_chat(served)
    secret = token(served.store, "app")
    with on_a_socket(served) as url:
        known = {"ROOT": url.removesuffix("/v1"), "SECRET": secret}
        environment = {name: value for name, value in os.environ.items() if name != "CHAT_TOKEN"}
        finished = subprocess.run(
            [sys.executable, APP],
            input="hello\n",
            env={**environment, "CHAT_URL": url} | {name: known.get(value, value) for name, value in given.items()},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert finished.returncode == 1
    assert said in finished.stderr
    assert "Traceback" not in finished.stderr
