"""The probe baseline: a linear classifier of the same vectors, fitted to the answers, without a receiver."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import row_folds
from latentcomm.channels.base import label
from latentcomm.experiments.crossmodal.fitting import FOLDS, require_one_each
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.evaluation import MESSAGE, Trial
from latentcomm.models.chat import AnyTemplate
from latentcomm.tasks.base import Item, Task

PROBE = "probe"
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Candidate inverse weights of the penalty, the strongest penalty first."""
FEWEST_OF_A_TEXT = 8
"""Fewest fitting pictures for a separate classifier of one text of a question."""


@dataclass(frozen=True, eq=False)
class AnswerProbe:
    """The classifiers of a question, from vectors to answers, by the text of the question.

    A question whose text names a fact of the picture, such as a position, has a classifier for each text.

    Attributes:
        by_text: the classifier of each text with enough fitting pictures.
        of_all: of all texts together, for any other text.
    """

    by_text: dict[str, "Classifier"]
    of_all: "Classifier"

    def scores(self, text: str, vector: Float[Tensor, " d_read"]) -> dict[str, float]:
        """The log-probability of every answer to the text; an answer that no fitting picture had is missing."""
        classifier = self.by_text.get(text, self.of_all)
        return dict(zip(classifier.answers, classifier.log_probabilities(vector), strict=True))


@dataclass(frozen=True, eq=False)
class Classifier:
    """Multinomial logistic regression on standardised vectors.

    Attributes:
        answers: in the order of the probabilities.
        fitted: scikit-learn's.
    """

    answers: tuple[str, ...]
    fitted: Any

    def log_probabilities(self, vector: Float[Tensor, " d_read"]) -> list[float]:
        """The log-probability of each answer."""
        return self.fitted.predict_log_proba(vector.cpu().double().numpy()[None])[0].tolist()


def fit_answer_probe(
    vectors: Float[Tensor, "item d_read"],
    pictures: PictureSet,
    question: Question,
    *,
    template: AnyTemplate = "raw",
    seed: int = 0,
) -> AnswerProbe:
    """The classifiers of a question's answers: softmax(W z + b), z the vectors with mean 0 and variance 1 per entry.

    W `[answer d_read]` and b minimise the mean cross-entropy of the answers plus |W|^2 / (2 n C); C is the
    one of `STRENGTHS` with most right answers on held-out folds, of equal ones the smallest. Folds hold out whole
    groups of pictures, unless an answer occurs in one group alone, as a name does: no training fold would contain it,
    so single pictures are held out. Where all pictures have one answer, the classifier always gives it.

    Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644.

    Args:
        vectors: of the pictures, in their order.
        pictures: for fitting.
        question: which of their facts is the answer.
        template: of the prompts; it determines how answers are written, as for choices.
        seed: of the folds.

    Raises:
        ValueError: not one vector a picture, or a question that no picture answers.
    """
    require_one_each(vectors, pictures)
    items = picture_task(pictures, question, template=template).items

    def classifier(chosen: Sequence[Item]) -> Classifier:
        rows = vectors[pictures.indices(item.sender for item in chosen)]
        return _fit(rows, [item.choice for item in chosen], [item.tags["group"] for item in chosen], seed)

    by_text: dict[str, list[Item]] = {}
    for item in items:
        by_text.setdefault(item.receiver, []).append(item)
    enough = {text: each for text, each in by_text.items() if len(by_text) > 1 and len(each) >= FEWEST_OF_A_TEXT}
    return AnswerProbe({text: classifier(each) for text, each in enough.items()}, classifier(items))


def probe_trials(
    probe: AnswerProbe, vectors: Float[Tensor, "item d_read"], task: Task, choices: Sequence[Sequence[str]]
) -> list[Trial]:
    """The answers of the classifiers, as trials of the channel "probe": no receiver, no prompt and no generated reply.

    The pick is the likeliest of the item's choices, the first where no fitting picture has any of them; the reply is
    the likeliest of all answers. Costs are not counted.

    Args:
        probe: of `fit_answer_probe`.
        vectors: of the pictures of the task's items.
        task: of `questions.picture_task`.
        choices: of each item, as `tasks.base.draw_choices` draws them for receivers.
    """
    trials = []
    for item, vector, options in zip(task.items, vectors, choices, strict=True):
        scores = probe.scores(item.receiver, vector)
        pick = max(options, key=lambda option: scores.get(option, -float("inf")))
        reply = max(scores, key=scores.__getitem__)
        right = task.judge(reply, item.answers).is_right
        trials.append(
            Trial(item.id, label(item), PROBE, MESSAGE, reply, right, pick, pick == item.choice, len(options))
        )
    return trials


def _fit(rows: Float[Tensor, "item d_read"], answers: list[str], groups: list[str], seed: int) -> Classifier:
    x, held_out = rows.cpu().double().numpy(), _folds(answers, groups, seed)

    def right(strength: float) -> int:
        total = 0
        for held in held_out:
            training = sorted(set(range(len(answers))) - set(held))
            fitted = _classifier(x[training], [answers[row] for row in training], strength)
            predicted = fitted.predict(x[held])
            total += sum(answer == answers[row] for answer, row in zip(predicted, held, strict=True))
        return total

    strength = max(STRENGTHS, key=right) if held_out else STRENGTHS[0]
    fitted = _classifier(x, answers, strength)
    return Classifier(tuple(str(answer) for answer in fitted.classes_), fitted)


def _folds(answers: list[str], groups: list[str], seed: int) -> list[list[int]]:
    """The rows that each fold holds out; no fold with one answer only, or with too few rows or groups."""
    groups_of: dict[str, set[str]] = {}
    for answer, group in zip(answers, groups, strict=True):
        groups_of.setdefault(answer, set()).add(group)
    whole = groups if all(len(each) > 1 for each in groups_of.values()) else None
    n = min(FOLDS, len(answers) if whole is None else len(set(whole)))
    if len(groups_of) < 2 or n < 2:
        return []
    return [fold.tolist() for fold in row_folds(len(answers), folds=n, groups=whole, seed=seed)]


def _classifier(x: Any, answers: list[str], strength: float) -> Any:
    """A fitted classifier; with one answer only, a constant one."""
    from sklearn.dummy import DummyClassifier  # a second of import time that only a fit needs
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(answers)) < 2:
        return DummyClassifier().fit(x, answers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # names, each with few pictures
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2_000)).fit(x, answers)
