"""Channels compared on the same items: accuracy, controls and cost."""
