"""Speed and cost, measured beside peers in one run; see docs/how-to/measure.md."""
