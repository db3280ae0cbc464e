"""``python -m kvmd.sandbox``: the inspector, with the socket as its standard input. ``kvmd inspector`` is the same."""

from __future__ import annotations

from kvmd.sandbox.server import serve

serve(0)
