"""The reverse cascade: a large model generates a prefix of the reply, the opening, and a small one continues it."""

from .fitting import fit_hand_off as fit_hand_off
from .generate import write_openings as write_openings
from .hand_offs import HandOff as HandOff
from .hand_offs import KVHandOff as KVHandOff
from .hand_offs import LatentHandOff as LatentHandOff
from .hand_offs import TextHandOff as TextHandOff
from .openings import Opening as Opening
from .openings import openings_of as openings_of
from .run import Cascade as Cascade
from .run import CascadeSweep as CascadeSweep
from .run import sweep_cascade as sweep_cascade
from .stops import STOPS as STOPS
from .stops import Confident as Confident
from .stops import EntropyDrop as EntropyDrop
from .stops import FixedTokens as FixedTokens
from .stops import Oracle as Oracle
from .stops import SentenceEnd as SentenceEnd
from .stops import Stop as Stop
from .trials import CascadeTrial as CascadeTrial
