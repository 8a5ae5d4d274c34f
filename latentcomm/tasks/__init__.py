"""The tasks that channels are judged on: pure data, one file a task, and the table of them."""

from latentcomm.tasks.base import DEFAULT_N_CHOICES, Item, Task, Template, draw_choices
from latentcomm.tasks.bindings import bindings, bindings_keyed, bindings_two_hop
from latentcomm.tasks.biographies import biographies
from latentcomm.tasks.catalogue import TASKS
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
    "bindings",
    "bindings_keyed",
    "bindings_two_hop",
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
