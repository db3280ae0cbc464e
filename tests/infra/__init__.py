"""Tests of the test infrastructure itself."""
