"""The reverse cascade: a large model opens the reasoning and a small one finishes it."""

from latentcomm.cascade.fitting import fit_hand_off
from latentcomm.cascade.hand_offs import HandOff, KVHandOff, LatentHandOff, TextHandOff
from latentcomm.cascade.openings import Opening, Openings
from latentcomm.cascade.run import Cascade, CascadeSweep, sweep_cascade
from latentcomm.cascade.stops import STOPS, Confident, EntropyDrop, FixedTokens, Oracle, SentenceEnd, Stop
from latentcomm.cascade.trials import CascadeTrial
from latentcomm.cascade.writing import write_openings

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
