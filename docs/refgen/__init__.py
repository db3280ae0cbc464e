"""Renders the reference pages from the code; ``docs/generate.py`` writes them."""
