"""Tests of kvmd.engine."""
