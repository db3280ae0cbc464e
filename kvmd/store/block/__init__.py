"""Pools of block devices: images are made ready in a folder, placed on a volume, and read back from it."""
