"""The published data set: lists of its tomograms, where each file lies, and the download of all of them."""
