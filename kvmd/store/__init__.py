"""Edges to primary storage: the final name of a volume appears only for verified and synced bytes."""
