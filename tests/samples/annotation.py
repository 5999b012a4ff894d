"""A store with questions for people, for the tests of the annotation page."""

from __future__ import annotations

from rlhf_loop.feedback.store import question_queue
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Message, Prompt, Question


def fill_queue(store: Store, n: int = 3, overlap: int = 1, text: str = "") -> list[Question]:
    """`n` questions about two answers each; `text` is added to the prompt and the answers."""
    prompts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=f"What is {i} and {i}?{text}"),), group=f"p{i}")
        for i in range(n)
    ]
    answers = [
        Completion(id=f"{side}{i}", prompt_id=f"p{i}", text=said, policy="base", round=0)
        for i in range(n)
        for side, said in (
            ("x", f"It is **{2 * i}**. That is even.{text}"),
            ("y", f"Some number, perhaps {2 * i + 1}.\n\n- It depends.{text}"),
        )
    ]
    questions = [
        Question(
            id=f"q{i}", prompt_id=f"p{i}", a_id=f"x{i}", b_id=f"y{i}", round=0, priority=1 - i / n, overlap=overlap
        )
        for i in range(n)
    ]
    store.add_prompts(prompts)
    store.add_completions(answers)
    store.add_questions(questions)
    return questions


def claim(store: Store, who: str, n: int = 1, seconds: float = 600.0) -> list[Question]:
    """Up to `n` open questions, leased to somebody."""
    with store.database.write(exclusive=False) as connection:
        return question_queue.claim(connection, who, n, seconds)


def held(store: Store, who: str) -> list[Question]:
    """What somebody holds a lease on."""
    with store.database.read() as connection:
        return [question for question, _ in question_queue.held(connection, who)]


def release(store: Store, who: str) -> int:
    """Ends all leases of somebody; gives how many there were."""
    with store.database.write() as connection:
        return question_queue.release(connection, who)
