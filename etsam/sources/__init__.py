"""Sources of training data: each way to a manifest has a room of its own."""
