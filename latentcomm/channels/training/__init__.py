"""The training of channels with frozen models: the trainer, and one learner a channel."""
