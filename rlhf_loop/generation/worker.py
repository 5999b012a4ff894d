"""The process that holds a policy: requests come in as lines of JSON on its input, answers go out on its output.

    python -m rlhf_loop.generation.worker

The first line says which policy. Then, in any number and order:

    {"id": "r1", "messages": [...], "n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64,
     "stop": [], "seed": 7, "round": 3, "key": "PROMPT"}
    {"cancel": "r1"}

and back: `{"ready": true}` once, then for a request `{"id", "prompt_tokens"}`, `{"id", "choice", "text"}` for each
bit of text, `{"id", "choice", "finish", "tokens", "token_ids"}` for each choice, or `{"id", "error"}`. It ends when its
input does, so it never outlives the server. Requests that wait are read together; those that come later are written
beside them, a token of each in turn.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import check_step
from rlhf_loop.generation.live import LiveBatch, Row
from rlhf_loop.models.loading import load_policy
from rlhf_loop.models.memory import fit_threads, tune_cpu_memory
from rlhf_loop.models.turns import encode_prompts
from rlhf_loop.recipe import Policy
from rlhf_loop.settings import parse_settings


class Worker:
    """A policy, its requests, and what is being written."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int, say: Callable[[dict[str, Any]], object]):
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens = batch_tokens  # rows x length that are written at once
        self.say = say
        self.waiting: list[dict[str, Any]] = []
        self.batches: list[LiveBatch] = []
        self.of_row: dict[Row, str] = {}  # -> request id

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write."""
        return not self.waiting and not self.batches

    def take(self, message: dict[str, Any]) -> None:
        """A request, or the end of one."""
        if "cancel" not in message:
            self.waiting.append(message)
            return
        id = message["cancel"]
        self.waiting = [request for request in self.waiting if request["id"] != id]
        rows = [row for row, of in self.of_row.items() if of == id]
        for row in rows:
            del self.of_row[row]
        for batch in self.batches:
            batch.drop([row for row in batch.rows if row in rows])
        self.batches = [batch for batch in self.batches if batch.rows]

    def work(self) -> None:
        """Begins what waits, as far as there is room, and writes one token of everything."""
        self._begin()
        for batch in self.batches:
            for row, text in batch.step():
                id = self.of_row[row]
                if text:
                    self.say({"id": id, "choice": row.sample, "text": text})
                if row.finish is not None:
                    # Where a stop text cut the answer, they are not its tokens.
                    ids = row.ids if row.text == batch.turns.text(row.ids) else None
                    end = {"finish": row.finish, "tokens": len(row.ids), "token_ids": ids}
                    self.say({"id": id, "choice": row.sample, **end})
                    del self.of_row[row]
        self.batches = [batch for batch in self.batches if batch.rows]

    def _begin(self) -> None:
        used = sum(len(row.prompt) + row.max_new_tokens for row in self.of_row)
        begun: list[Row] = []
        while self.waiting:
            try:
                rows = self.waiting[0].get("rows") or self._rows(self.waiting[0])
            except UserError as error:
                self.say({"id": self.waiting.pop(0)["id"], "error": str(error)})
                continue
            needed = sum(len(row.prompt) + row.max_new_tokens for row in rows)
            if used and used + needed > self.batch_tokens:
                self.waiting[0]["rows"] = rows  # asked again with each token that others write
                break
            request = self.waiting.pop(0)
            used += needed
            begun += rows
            self.of_row.update(dict.fromkeys(rows, request["id"]))
            self.say({"id": request["id"], "prompt_tokens": len(rows[0].prompt)})
        if begun:
            self.batches.append(LiveBatch(self.model, self.tokenizer, begun))

    def _rows(self, request: dict[str, Any]) -> list[Row]:
        """One row for each choice; the answer is shortened to what fits into the model's context."""
        (prompt,) = encode_prompts(self.tokenizer, [request["messages"]])
        limit = getattr(self.model.config, "max_position_embeddings", None)
        room = request["max_tokens"] if limit is None else min(request["max_tokens"], limit - len(prompt))
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens and leaves no room for an answer in the model's {limit}; "
                "send fewer or shorter messages"
            )
        return [
            Row(
                prompt=prompt,
                key=(request["seed"], request["round"], request["key"]),
                sample=choice,
                max_new_tokens=room,
                temperature=request["temperature"],
                top_p=request["top_p"],
                top_k=request["top_k"],
                stop=tuple(request["stop"]),
            )
            for choice in range(request["n"])
        ]


def main() -> None:
    """Loads the policy that the first line names, and answers until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to the log, not between the answers

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    start = json.loads(sys.stdin.readline())
    settings = parse_settings(Policy, start["settings"], "policy")
    tune_cpu_memory()
    fit_threads()
    try:
        check_step(Path(start["policy"]))
        model, tokenizer = load_policy(start["policy"], settings, merged=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    worker = Worker(model, tokenizer, start["batch_tokens"], say)
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    say({"ready": True})
    while True:
        while worker.idle or not inbox.empty():
            line = inbox.get()
            if not line:
                return
            worker.take(json.loads(line))
        worker.work()


def _read(inbox: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        inbox.put(line)
    inbox.put("")


if __name__ == "__main__":
    main()
