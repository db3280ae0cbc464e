"""Tests of the host's package."""
