"""Folders that several hosts have as their storage pool."""
