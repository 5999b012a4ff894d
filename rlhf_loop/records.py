"""The words that flow through the loop: small frozen records (`record_files.py` writes them to files).

Everything a run makes or people say is one of these. Ids of what the loop makes are derived from
content and place (`stable_id`), so a rerun makes the same ones; ids of people's events are UUIDv7
(`event_id`), which sort by time.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

Split = Literal["train", "dev", "test", "judge", "untrained"]
"""train: feedback, reward model and policy learn from it. dev: for choosing settings. test: evaluation
only. judge: kept apart to train an independent judge. untrained: a conversation with more in it than text, such as
calls of tools, which nothing learns from."""

HELD_OUT: tuple[Split, ...] = ("dev", "test", "judge")
"""Splits that no policy learns from."""


class Message(TypedDict):
    """One turn of a conversation, as in TRL's conversational data sets."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a policy is asked: the conversation up to its turn."""

    id: str
    messages: tuple[Message, ...]
    group: str  # what must never be split: a debate, a document; the id itself when there is none
    split: Split = "train"
    reference: str | None = None  # a known good answer, where one exists
    tags: tuple[str, ...] = ()  # styles, topics
    source: str = ""  # the file it came from
    columns: dict[str, Any] = field(default_factory=dict)  # further columns of that file, for reward functions

    @property
    def asked(self) -> str:
        """The text of its turns, without those of the system."""
        return "\n".join(message["content"] for message in self.messages if message["role"] != "system")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer of a policy (or one that was imported) to a prompt."""

    id: str
    prompt_id: str
    text: str
    policy: str  # artifact id of the policy, "import", or `endpoint:NAME:MODEL` of what a server wrote
    round: int
    sample: int = 0  # its number among the prompt's samples
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)  # temperature, top_p, ...
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: int = 0
    parent: str | None = None  # the completion it revises
    critique: str | None = None  # the critique it answers to
    token_ids: tuple[int, ...] | None = None  # as they were sampled, with the one that ended it; None: not known

    @property
    def by_policy(self) -> bool:
        """Whether a policy of this run wrote it; what was imported, or written by an endpoint, follows the chat
        template's form instead."""
        return self.policy != "import" and not self.policy.startswith("endpoint:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotator:
    """Who gave the feedback; `id` is a pseudonym."""

    id: str
    kind: Literal["HUMAN", "LLM", "CODE"] = "HUMAN"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A part of a completion that a critique is about; offsets in characters, end exclusive."""

    start: int
    end: int
    label: str = ""
    comment: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Feedback:
    """What every piece of feedback carries. Append-only: a correction is a new record that supersedes."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")  # JSON keeps infinity

    id: str
    prompt_id: str
    annotator: Annotator
    created_at: float = 0.0  # seconds since the epoch, UTC
    round: int = 0
    comment: str | None = None  # a critique in the annotator's words
    rubric_version: str | None = None
    lead_time: float | None = None  # seconds the annotator took
    source: str = ""  # file:line, application or "simulated"
    external_id: str | None = None
    supersedes: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference(_Feedback):
    """Which of two completions is better."""

    kind: Literal["preference"] = "preference"
    a_id: str
    b_id: str
    winner: Literal["a", "b", "tie", "both_bad"]
    strength: float | None = None  # how clearly, 0..1 (for votes: the margin of the vote)
    shown_order: Literal["ab", "ba"] | None = None
    blind: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating(_Feedback):
    """A score on a scale."""

    kind: Literal["rating"] = "rating"
    completion_id: str
    score: float
    scale: tuple[float, float] = (1.0, 5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumb(_Feedback):
    """Thumbs up (True) or down."""

    kind: Literal["thumb"] = "thumb"
    completion_id: str
    label: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Critique(_Feedback):
    """What is wrong with a completion and what to do about it; the text is `comment`."""

    kind: Literal["critique"] = "critique"
    completion_id: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit(_Feedback):
    """A person's corrected version of a completion."""

    kind: Literal["edit"] = "edit"
    completion_id: str
    edited_completion: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip(_Feedback):
    """The annotator declined to judge; counted, never used for training."""

    kind: Literal["skip"] = "skip"
    completion_id: str | None = None
    a_id: str | None = None
    b_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Implicit(_Feedback):
    """What a user did rather than said: copied, regenerated, left."""

    kind: Literal["implicit"] = "implicit"
    completion_id: str
    action: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Retraction(_Feedback):
    """Takes back the piece of feedback that it supersedes, and says nothing instead."""

    kind: Literal["retraction"] = "retraction"


Feedback = Annotated[
    Preference | Rating | Thumb | Critique | Edit | Skip | Implicit | Retraction, Field(discriminator="kind")
]
FEEDBACK_KINDS = tuple(cls.__dataclass_fields__["kind"].default for cls in get_args(get_args(Feedback)[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a reward model says of a completion."""

    completion_id: str
    reward_model: str  # artifact id
    value: float
    spread: float | None = None  # standard deviation over an ensemble; None for a single model
    breakdown: dict[str, float] = field(default_factory=dict)  # parts that `value` is made of
    critique: str | None = None  # what the reward model wrote of the completion, where it is one that writes
    round: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalled:
    """An earlier answer that a policy is shown again: to revise, or as an exemplar."""

    prompt_id: str  # that it answers
    completion_id: str
    text: str
    standing: float | None = None  # the share of what its reward model scored with it that it scores above
    critique: str | None = None
    feedback_ids: tuple[str, ...] = ()  # of the critique
    before: tuple[str, ...] = ()  # the texts that it is a revision of, the latest first
    near: tuple[str, ...] = ()  # other prompts that are nearly the same as its own


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """One training pair in TRL's conversational format, with where it came from."""

    id: str
    prompt_id: str
    group: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0
    chosen_id: str
    rejected_id: str
    chosen_finished: bool = True  # False: cut off at the length limit, so no end token may be trained after it
    rejected_finished: bool = True
    chosen_token_ids: tuple[int, ...] | None = None  # of the completion, and below
    rejected_token_ids: tuple[int, ...] | None = None
    chosen_by_policy: bool = True
    rejected_by_policy: bool = True
    origin: Literal["human", "simulated", "reward", "llm", "code", "edit", "fresh", "revision"]
    feedback_ids: tuple[str, ...] = ()
    reward_model: str | None = None
    round: int = 0
    critiques: tuple[str, ...] = ()
    critique_ids: tuple[tuple[str, ...], ...] = ()  # for each of `critiques`, the feedback that says it


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledCompletion:
    """One answer that was called good or bad, in TRL's conversational format for unpaired feedback."""

    id: str
    prompt_id: str
    group: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    finished: bool = True  # False: cut off at the length limit, so no end token may be trained after it
    token_ids: tuple[int, ...] | None = None  # of the completion
    by_policy: bool = True
    completion_id: str
    origin: Literal["human", "simulated", "llm", "code", "implicit"]
    feedback_ids: tuple[str, ...] = ()
    round: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CritiquedCompletion:
    """One answer of the training split and what somebody said of it, in TRL's prompt-completion format.

    `critique` is empty for a verdict without words and for an edit. What somebody wrote in its place (`revision`)
    stands in a row without critique; the same `completion_id` has what was said beside it."""

    id: str
    prompt_id: str
    group: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    finished: bool = True  # False: cut off at the length limit, so no end token may be trained after it
    token_ids: tuple[int, ...] | None = None  # of the completion; None: not known
    by_policy: bool = True
    completion_id: str
    critique: str = ""
    spans: tuple[Span, ...] = ()  # parts of the completion that it is about
    label: bool | None = None  # False: the answer was complained of; True: called good; None: nobody said
    revision: str | None = None
    origin: Literal["human", "simulated", "llm", "code", "implicit"]  # who said it; implicit: a user's next message
    annotator: str
    feedback_ids: tuple[str, ...] = ()
    said_of: str | None = None  # the completion that the critique was really about, where `control: shuffled` moved it
    said_in: str | None = None  # the prompt that holds it, of a user's next message
    round: int = 0

    @property
    def text(self) -> str:
        """The answer itself."""
        return self.completion[-1]["content"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What was complained of in an answer of the training split, to be asked again of every new policy."""

    id: str
    prompt_id: str
    group: str
    completion_id: str  # the answer that was complained of, and below
    text: str
    finished: bool = True
    token_ids: tuple[int, ...] | None = None
    by_policy: bool = True
    asks: str  # a name in RULES of rlhf_loop/rows/check_rules.py, or `judge`
    limit: int | None = None  # of the rule, where it has one: words
    critiques: tuple[str, ...] = ()  # the complaints: their words, or their tags
    critique_ids: tuple[tuple[str, ...], ...] = ()  # for each of `critiques`, the feedback that says it
    origin: Literal["human", "simulated", "llm", "code"]  # who said it
    feedback_ids: tuple[str, ...] = ()
    round: int = 0  # the last one in which it was said


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """A check asked of a policy's answer to the same prompt."""

    id: str  # of the check, and below
    prompt_id: str
    group: str
    completion_id: str
    text: str
    asks: str
    limit: int | None = None
    critiques: tuple[str, ...] = ()
    critique_ids: tuple[tuple[str, ...], ...] = ()  # for each of `critiques`, the feedback that says it
    origin: Literal["human", "simulated", "llm", "code"]
    feedback_ids: tuple[str, ...] = ()
    answer_id: str  # of the answer it was asked of, and below
    answer: str
    outcome: Literal["fixed", "still_there", "came_back", "not_told"]  # not_told: the judge did not say
    before: bool | None = None  # whether the last promoted policy's answer passes; None: it gave none, or nobody says


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One answer to imitate, in TRL's prompt-completion format, with where it came from."""

    id: str
    prompt_id: str
    group: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    finished: bool = True  # False: cut off at the length limit, so no end token may be trained after it
    token_ids: tuple[int, ...] | None = None  # of the completion; none of what a person wrote
    by_policy: bool = True
    completion_id: str | None = None  # the candidate it is, or that was edited
    origin: Literal["edit", "reference", "best_of_n", "critique"]
    feedback_ids: tuple[str, ...] = ()
    reward_model: str | None = None
    score: float | None = None  # of that reward model
    margin: float | None = None  # over the mean score of the prompt's other candidates
    round: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A pair of completions that is worth a person's time."""

    id: str
    prompt_id: str
    a_id: str
    b_id: str
    round: int
    priority: float = 0.0
    reason: str = ""
    overlap: int = 1  # how many people are to judge it
    known: Literal["a", "b", "tie", "both_bad"] | None = None  # of a calibration item: the answer it should get


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A policy or reward model: where its weights are, what it came from, how it did."""

    id: str
    kind: Literal["policy", "reward_model", "judge"]
    path: str  # folder, or a model reference for the base policy
    round: int
    parent: str | None = None
    trained_on: tuple[str, ...] = ()  # feedback ids
    metrics: dict[str, Any] = field(default_factory=dict)
    promoted: bool = False


def stable_id(*parts: object) -> str:
    """24 hexadecimal digits that depend on `parts` alone (SHA-256 of their JSON)."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:24]


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str).encode


def event_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and sorted by the millisecond it was made in."""
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | secrets.randbits(76)
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


_adapters: dict[Any, TypeAdapter[Any]] = {}


def adapter(record_type: Any) -> TypeAdapter[Any]:
    """Pydantic's checker of `record_type`: `.validate_python(dict)` raises `pydantic.ValidationError`."""
    if record_type not in _adapters:
        _adapters[record_type] = TypeAdapter(record_type)
    return _adapters[record_type]


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON types."""
    row: dict[str, Any] = adapter(type(record)).dump_python(record, mode="json")
    return row


def from_dict(record_type: Any, row: dict[str, Any]) -> Any:
    """The inverse of `to_dict`; raises `pydantic.ValidationError` when a field is wrong."""
    return adapter(record_type).validate_python(row)


def sound(text: str) -> str:
    """Text without halves of surrogate pairs, which can be neither stored nor printed."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def loads(text: str) -> Any:
    """JSON as Python's types, twice as fast as json alone."""
    try:
        return from_json(text)
    except ValueError:  # half of a surrogate pair
        return json.loads(text)
