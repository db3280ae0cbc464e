"""Tests of kvmd.store."""
