"""The reverse cascade: a large model generates a prefix of the reply, the opening, and a small one continues it."""

from latentcomm.experiments.cascade.fitting import fit_hand_off
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.hand_offs import HandOff, KVHandOff, LatentHandOff, TextHandOff
from latentcomm.experiments.cascade.openings import Opening, Openings
from latentcomm.experiments.cascade.run import Cascade, CascadeSweep, sweep_cascade
from latentcomm.experiments.cascade.stops import STOPS, Confident, EntropyDrop, FixedTokens, Oracle, SentenceEnd, Stop
from latentcomm.experiments.cascade.trials import CascadeTrial

__all__ = [
    "STOPS",
    "Cascade",
    "CascadeSweep",
    "CascadeTrial",
    "Confident",
    "EntropyDrop",
    "FixedTokens",
    "HandOff",
    "KVHandOff",
    "LatentHandOff",
    "Opening",
    "Openings",
    "Oracle",
    "SentenceEnd",
    "Stop",
    "TextHandOff",
    "fit_hand_off",
    "sweep_cascade",
    "write_openings",
]
