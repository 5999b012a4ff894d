"""A language model behind a server in the place of people. What it says is always called a language model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from rlhf_loop.annotators import AnnotatorSettings
from rlhf_loop.endpoints.asks import Unanswered
from rlhf_loop.endpoints.client import Client
from rlhf_loop.endpoints.judging import RUBRIC, Verdict, compare
from rlhf_loop.records import Annotator, Completion, Preference, Prompt, Question, Skip, stable_id


class EndpointAnnotatorSettings(AnnotatorSettings):
    """A model of the recipe's `endpoints` that judges each pair in both orders; orders that disagree are a tie."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: str  # a name in the recipe's `endpoints`
    rubric: str = RUBRIC
    critiques: bool = True  # also what the losing answer should do better
    called: ClassVar[str] = "a language model"


class EndpointAnnotator:
    """Asks a model which of two answers is better, and what the other should do instead."""

    Settings = EndpointAnnotatorSettings

    def __init__(self, settings: EndpointAnnotatorSettings, seed: int, client: Client):
        """Nothing is drawn: the same questions are answered from what `client` keeps."""
        self.settings = settings
        self.client = client
        self.annotator = Annotator(id=f"llm:{client.settings.model}", kind="LLM")

    def answer(
        self,
        questions: Sequence[Question],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        round: int,
    ) -> list[Preference | Skip]:
        """A preference a question, in order, or a skip whose `comment` is why there is none.

        A preference's `comment` is what the losing answer should do better (None for a tie)."""
        asked = [(prompts[q.prompt_id], completions[q.a_id], completions[q.b_id]) for q in questions]
        verdicts = compare(self.client, self.settings.rubric, asked, self.settings.critiques)
        return [self._record(*pair, round) for pair in zip(questions, verdicts, strict=True)]

    def _record(self, question: Question, verdict: Verdict | Unanswered, round: int) -> Preference | Skip:
        made_of = (self.client.settings.identity, self.settings.rubric, self.settings.critiques, question.id)
        common = {
            "prompt_id": question.prompt_id,
            "annotator": self.annotator,
            "round": round,
            "rubric_version": stable_id(self.settings.rubric)[:8],
            "source": f"endpoint {self.client.name}",
            "external_id": question.id,
            "a_id": question.a_id,
            "b_id": question.b_id,
        }
        if isinstance(verdict, Unanswered):
            return Skip(id=stable_id("endpoint skip", *made_of), comment=verdict.reason, **common)  # type: ignore[arg-type]
        return Preference(
            id=stable_id("endpoint", *made_of),
            winner=verdict.winner,
            comment=verdict.comment,
            created_at=verdict.created_at,
            **common,  # type: ignore[arg-type]
        )
