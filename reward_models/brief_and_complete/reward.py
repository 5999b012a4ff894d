"""The rule `brief_and_complete` as a reward; works in TRL's trainers too."""

from rlhf_loop.annotators.rules import RULES


def brief_and_complete(prompts, completions, finished=None, **columns):
    """One value in 0..1 for each completion; `finished` says which ended by themselves (all, when not given)."""
    rule = RULES["brief_and_complete"]
    finished = finished or [True] * len(completions)
    return [
        rule(_last_turn(prompt), _last_turn(completion), ended).value
        for prompt, completion, ended in zip(prompts, completions, finished, strict=True)
    ]


def _last_turn(text):
    """The text itself, or the last message of a conversation."""
    return text if isinstance(text, str) else text[-1]["content"]
