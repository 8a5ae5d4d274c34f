"""The tasks that channels are judged on: pure data, one file a task, and the table of them."""

from collections.abc import Callable, Mapping

from latentcomm.tasks.base import DEFAULT_N_CHOICES, Item, Task, Template, draw_choices
from latentcomm.tasks.biographies import biographies
from latentcomm.tasks.countries import Fame, SenderForm, countries
from latentcomm.tasks.gsm8k import gsm8k
from latentcomm.tasks.judging import Begins, Contains, Judge, Letter, Mentions, Number, Verdict, is_correct
from latentcomm.tasks.kv_math import kv_math
from latentcomm.tasks.kv_math_worked import kv_math_worked
from latentcomm.tasks.mmlu import mmlu
from latentcomm.tasks.model_judge import JudgedBy
from latentcomm.tasks.prosqa import prosqa
from latentcomm.tasks.tip_sheets import tip_sheets

__all__ = [
    "DEFAULT_N_CHOICES",
    "TASKS",
    "Begins",
    "Contains",
    "Fame",
    "Item",
    "Judge",
    "JudgedBy",
    "Letter",
    "Mentions",
    "Number",
    "SenderForm",
    "Task",
    "Template",
    "Verdict",
    "biographies",
    "countries",
    "draw_choices",
    "gsm8k",
    "is_correct",
    "kv_math",
    "kv_math_worked",
    "mmlu",
    "prosqa",
    "tip_sheets",
]

TASKS: Mapping[str, Callable[..., Task]] = {
    "countries": countries,
    "tip_sheets": tip_sheets,
    "biographies": biographies,
    "gsm8k": gsm8k,
    "mmlu": mmlu,
    "kv_math": kv_math,
    "kv_math_worked": kv_math_worked,
    "prosqa": prosqa,
}
"""Every task by its name. All take `template`; gsm8k and mmlu need a source, a file or a hub data set."""
