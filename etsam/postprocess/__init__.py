"""Post-processing: a mask in, a mask out, slice by slice."""
