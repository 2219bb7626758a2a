"""The error of all that a training is given."""


class TrainingError(ValueError):
    """Pictures, weights or a saved state that a training cannot use. Says what to do."""
