"""A language model as the judge of free answers."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model, encode
from latentcomm.models.chat import AnyTemplate
from latentcomm.tasks.judging import Verdict, refuse_empty_answers
from latentcomm.tasks.numbers import before_the_next_question

QUESTION = (
    "Expected answer: {answers}\nGiven answer: {reply}\n"
    'Does the given answer say the same as the expected answer? Answer "Yes" or "No".'
)
MOST_CHARACTERS = 2000
"""Of a longer reply the judge reads the beginning, and its context holds it."""


@dataclass(frozen=True)
class JudgedBy:
    """A model as the judge: "Yes" is likelier than "No" as the answer to whether reply and accepted answer agree.

    The model reads `question`, with the accepted answers (joined by "or"; facts joined by "|" too) and the reply filled
    in, and of its next token the logits of the first tokens of `yes` and `no` are compared; a tie is a no. What comes
    after a further "Question:" is not read. An empty reply is not parsed, and the model is not run.

    A model's verdict is an opinion: small models agree with nearly anything. Report with it how often it accepts
    shuffled answers, and judge by string match where that is possible. Records name the judge by the model's `name` and
    the `fingerprint` of its weights.

    Raises:
        ValueError: a question without {answers} and {reply}, or `yes` and `no` begin with the same token.
    """

    model: InitVar[Model]
    template: AnyTemplate = "chat"
    question: str = QUESTION
    yes: str = "Yes"
    no: str = "No"
    name: str = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self, model: Model) -> None:
        if "{answers}" not in self.question or "{reply}" not in self.question:
            raise ValueError(f"the question {self.question!r} needs {{answers}} and {{reply}}; write them into it")
        if model.first_token(self.yes) == model.first_token(self.no):
            raise ValueError(f"{self.yes!r} and {self.no!r} begin with the same token for {model.name}; choose others")
        object.__setattr__(self, "name", model.name)
        object.__setattr__(self, "fingerprint", model.fingerprint)
        object.__setattr__(self, "_model", model)

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """The model's verdict on a reply."""
        refuse_empty_answers(answers)
        answer_text = before_the_next_question(reply).strip()
        if not any(mark.isalnum() for mark in answer_text):
            return Verdict(False, False)
        model: Model = getattr(self, "_model")  # noqa: B009  (no field: a model has no digest, its name and weights do)
        expected = " or ".join(answer.replace("|", " or ") for answer in answers)
        text = self.question.replace("{answers}", expected).replace("{reply}", answer_text[:MOST_CHARACTERS])
        logits = next_token_logits(model, encode(model, [text], template=self.template))[0]
        is_right = bool(logits[model.first_token(self.yes)] > logits[model.first_token(self.no)])
        return Verdict(is_right, True, answer_text)
