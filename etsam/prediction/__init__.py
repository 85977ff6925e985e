"""Prediction: tomograms on disk in, masks, logits, pictures and records on disk out."""
