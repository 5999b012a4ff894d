"""What people complained of, as a reward: the rules that they meant; works in TRL's trainers too."""

from rlhf_loop.rows.check_rules import passes


def complaint_checks(completions, complaint_checks=None, finished=None, **columns):
    """The share of its prompt's rules that each completion passes, 0 to 1; None where nobody complained of what a rule
    understands. `complaint_checks`: for each completion its prompt's rules, such as `too_long 18`, or None."""
    asked = complaint_checks or [None] * len(completions)
    ended = finished or [True] * len(completions)
    return [_share(*row) for row in zip(completions, asked, ended, strict=True)]


def _share(completion, rules, finished):
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    if not rules:
        return None
    asked = [(name, int(limit) if limit else None) for name, _, limit in (rule.partition(" ") for rule in rules)]
    return sum(passes(name, limit, text, finished) for name, limit in asked) / len(asked)
