"""What channels learn beside frozen models: the trainer and one learner a channel."""
