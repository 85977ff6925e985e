"""Views for people: a page to scroll beside each mask, a page for a folder, scripts and plugins of other programs."""
