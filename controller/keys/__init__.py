"""The fleet's keys: its CA, the keys that sign events, and which hosts and publishers were let in with which of them."""
