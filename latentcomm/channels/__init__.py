"""Channels: the ways in which one model's state can reach another."""

from latentcomm.channels.activation import Activation
from latentcomm.channels.base import Channel
from latentcomm.channels.calm import Calm
from latentcomm.channels.coconut import Coconut
from latentcomm.channels.latent import Interlat
from latentcomm.channels.message import Message
from latentcomm.channels.silent import Silent, Skyline

__all__ = ["Activation", "Calm", "Channel", "Coconut", "Interlat", "Message", "Silent", "Skyline"]
