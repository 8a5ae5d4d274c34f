"""latentcomm: two language models that communicate through their activations, measured."""

from jaxtyping import install_import_hook

install_import_hook("latentcomm", "beartype.beartype")  # every shape in a signature is checked at the call

from latentcomm import alignment, cascade, channels, drift, fusion, redundancy, similarity, stats, tasks  # noqa: E402
from latentcomm.capture import Activations, ActivationStore, capture, capture_to_disk  # noqa: E402
from latentcomm.cascade import (  # noqa: E402
    Cascade,
    CascadeSweep,
    CascadeTrial,
    Confident,
    EntropyDrop,
    FixedTokens,
    KVHandOff,
    LatentHandOff,
    Oracle,
    SentenceEnd,
    TextHandOff,
    fit_hand_off,
    sweep_cascade,
)
from latentcomm.channels import Activation, Message, Silent, Skyline  # noqa: E402
from latentcomm.comparison import Comparison, compare  # noqa: E402
from latentcomm.decoding import Decoded, decode, generate, next_token_logits  # noqa: E402
from latentcomm.diagnosis import Diagnosis, diagnose  # noqa: E402
from latentcomm.effects import Effects, measure_effects  # noqa: E402
from latentcomm.evaluation import Trial, evaluate, summarise, to_table  # noqa: E402
from latentcomm.grafting import LAST, Graft, grafted, span  # noqa: E402
from latentcomm.layer_sweep import LayerSweep, sweep_layers  # noqa: E402
from latentcomm.learning import LearningPlan, learn, load_learned  # noqa: E402
from latentcomm.models import Model, encode, load_model, wrap_model  # noqa: E402
from latentcomm.prompts import Prompts  # noqa: E402
from latentcomm.receiver_input import ReceiverInput  # noqa: E402
from latentcomm.sites import Site  # noqa: E402
from latentcomm.sweeps import SweepReport, sweep_and_judge  # noqa: E402

__all__ = [
    "LAST",
    "Activation",
    "ActivationStore",
    "Activations",
    "Cascade",
    "CascadeSweep",
    "CascadeTrial",
    "Comparison",
    "Confident",
    "Decoded",
    "Diagnosis",
    "Effects",
    "EntropyDrop",
    "FixedTokens",
    "Graft",
    "KVHandOff",
    "LatentHandOff",
    "LayerSweep",
    "LearningPlan",
    "Message",
    "Model",
    "Oracle",
    "Prompts",
    "ReceiverInput",
    "SentenceEnd",
    "Silent",
    "Site",
    "Skyline",
    "SweepReport",
    "TextHandOff",
    "Trial",
    "alignment",
    "capture",
    "capture_to_disk",
    "cascade",
    "channels",
    "compare",
    "decode",
    "diagnose",
    "drift",
    "encode",
    "evaluate",
    "fusion",
    "fit_hand_off",
    "generate",
    "grafted",
    "learn",
    "load_learned",
    "load_model",
    "measure_effects",
    "next_token_logits",
    "redundancy",
    "similarity",
    "span",
    "stats",
    "summarise",
    "sweep_and_judge",
    "sweep_cascade",
    "sweep_layers",
    "tasks",
    "to_table",
    "wrap_model",
]
