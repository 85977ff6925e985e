"""The network of one stage in plain torch: SAM2 built from a config, its weights, and its use slice by slice."""
