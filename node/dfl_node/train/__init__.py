"""Training: models, data, the worker process. Only the worker imports torch."""
