"""Channels: how a sender's prompt becomes a message, and how a receiver takes that message in."""

from latentcomm.channels.activation import Activation
from latentcomm.channels.base import Channel
from latentcomm.channels.calm import Calm
from latentcomm.channels.cipher import Cipher, CipherDebate
from latentcomm.channels.coconut import Coconut
from latentcomm.channels.debate import Debate
from latentcomm.channels.interlat import Interlat
from latentcomm.channels.kv import KeyValues
from latentcomm.channels.merged import Merged
from latentcomm.channels.message import Message
from latentcomm.channels.several_senders import FurtherSender, OfEach
from latentcomm.channels.silent import Silent, Skyline
from latentcomm.channels.state_deltas import StateDeltas
from latentcomm.channels.text import Text

__all__ = [
    "Activation",
    "Calm",
    "Channel",
    "Cipher",
    "CipherDebate",
    "Coconut",
    "Debate",
    "FurtherSender",
    "Interlat",
    "KeyValues",
    "Merged",
    "Message",
    "OfEach",
    "Silent",
    "Skyline",
    "StateDeltas",
    "Text",
]
