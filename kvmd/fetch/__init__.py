"""Edges to the sources of images: one module a protocol."""
