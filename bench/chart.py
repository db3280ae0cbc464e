"""An SVG of kvmd's figures as shares of their targets: a bar that ends left of the line has reached its own."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from bench.outcome import Figure, Outcome

_ROW, _LEFT, _UNIT, _RIGHT = 22, 330, 240, 190
_LONGEST = 2.0  # of the target; a bar is cut there
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .head { font-weight: 600 } .reached { fill: #2f81b7 } .missed { fill: #c4622d } .mark { stroke: #24292f; stroke-width: 2 }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .mark { stroke: #e6edf3 } }
"""


def chart(outcomes: Mapping[str, Outcome]) -> str:
    """Draw a row for every figure with a target, under its scenario's name."""
    rows: list[str] = [f'<text class="head" x="{_LEFT + _UNIT}" y="16" text-anchor="middle">target</text>']
    top = _ROW
    for name, outcome in outcomes.items():
        judged = [figure for figure in outcome.figures if figure.target]
        rows.append(f'<text class="head" x="8" y="{top + 16}">{escape(name)}</text>')
        rows += [_bar(figure, top + _ROW * number) for number, figure in enumerate(judged, start=1)]
        top += _ROW * (len(judged) + 1)
    mark = f'<line class="mark" x1="{_LEFT + _UNIT}" x2="{_LEFT + _UNIT}" y1="{_ROW}" y2="{top}"/>'
    width = int(_LEFT + _UNIT * _LONGEST + _RIGHT)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 8}" width="{width}" height="{top + 8}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *rows, mark, "</svg>\n"])


def _bar(figure: Figure, top: int) -> str:
    target = figure.target or 1.0
    share = target / figure.value if figure.is_floor else figure.value / target
    length = _UNIT * min(share, _LONGEST)
    bound = "≥" if figure.is_floor else "≤"
    said = f"{figure.value:.2f} {figure.unit} ({bound} {target:g})"
    return (
        f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(figure.name)}</text>'
        f'<rect class="{figure.verdict}" x="{_LEFT}" y="{top + 4}" width="{length:.0f}" height="{_ROW - 7}" rx="2"/>'
        f'<text x="{_LEFT + max(length, _UNIT) + 8:.0f}" y="{top + 16}">{escape(said)}</text>'
    )
