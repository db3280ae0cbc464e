"""Tests of the running daemon against real brokers and a real origin."""
