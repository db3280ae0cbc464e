"""Tests of kvmd.cli."""
