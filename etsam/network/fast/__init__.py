"""Replacements of SAM2's own operations that compute the same faster; each can be switched off."""
