"""Tests of kvmd.fetch."""
