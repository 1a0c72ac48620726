"""How a round's updates become a model. One file a strategy, three pure functions each: `init` a sum, `apply`
an update to it, and the `model` that follows.
"""
