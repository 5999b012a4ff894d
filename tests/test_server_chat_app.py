"""The example application against a service on a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import uvicorn
from server_samples import file_store, service, token, with_chat

from rlhf_loop.server.app import create_app

APP = Path(__file__).parent.parent / "recipes" / "chat_app" / "app.py"


def test_a_chat_with_thumbs_ends_in_feedback_and_a_stop_loses_nothing(tmp_path: Path) -> None:
    served = service(file_store(tmp_path), open_access=False)
    with_chat(served)
    secret = token(served.store, "app")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(served), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    said = "red green\n+ just right\nr\n- too long\n= red, green\nand blue?\n\n"
    finished = subprocess.run(
        [sys.executable, APP],
        input=said,
        env={**os.environ, "CHAT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "CHAT_TOKEN": secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    server.should_exit = True
    thread.join(30)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("thank you") == 4
    assert "red green says base 0" in finished.stdout
    kinds = [(record.kind, record.comment) for record in served.store.feedback()]
    assert kinds == [("thumb", "just right"), ("implicit", None), ("thumb", "too long"), ("edit", None)]
    first, again, more = served.store.completions()
    assert first.prompt_id == again.prompt_id != more.prompt_id
    assert len({prompt.group for prompt in served.store.prompts()}) == 1
