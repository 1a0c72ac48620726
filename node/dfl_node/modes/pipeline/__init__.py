"""Mode pipeline: the model in stages over nodes, micro-batches in flight, and a node may die at any step."""
