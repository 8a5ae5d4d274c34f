"""What passes from the large model to the small one: the opening as text, as hidden states, or as keys and values."""

from latentcomm.experiments.cascade.hand_offs.base import HandOff, Received
from latentcomm.experiments.cascade.hand_offs.kv import KVHandOff
from latentcomm.experiments.cascade.hand_offs.latent import EMBEDDINGS, LatentHandOff, states_of
from latentcomm.experiments.cascade.hand_offs.text import TextHandOff

__all__ = ["EMBEDDINGS", "HandOff", "KVHandOff", "LatentHandOff", "Received", "TextHandOff", "states_of"]
