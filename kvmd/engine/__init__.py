"""Runs sessions: performs the effects of the pure core at the edges, and feeds back what happened."""
