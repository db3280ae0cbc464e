"""The composition root: the only place that constructs edges and ties them to the engine."""
