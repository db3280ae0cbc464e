"""Tests of the controller: pure parts, and the commands over real brokers."""
