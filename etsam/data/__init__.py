"""Training data: manifests, clips of neighbouring slices cut from the volume files, their augmentation and loading."""
