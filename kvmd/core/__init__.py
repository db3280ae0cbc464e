"""Decisions, in pure code: values in, values out. No asyncio, clock, disk or network."""
