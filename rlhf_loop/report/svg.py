"""A drawing of matplotlib as SVG within a page: its colours and font are the page's, and nothing in it is a
style, which the dashboard's content security policy forbids."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "page": "#040404",
    "blue": "#050505",
    "orange": "#060606",
    "green": "#070707",
    "violet": "#080808",
    "pink": "#090909",
    "grey": "#0a0a0a",
}
"""Names of the page's colours and the stand-ins that matplotlib draws with; the SVG refers to `var(--NAME)`."""

_STYLE = {
    "svg.fonttype": "none",  # real text: it scales, can be selected, and takes the page's font
    "svg.hashsalt": "rlhf-loop",  # the same drawing gives the same bytes
    "text.parse_math": False,
    "font.size": 10,  # legible on a phone, where the drawing is about as wide as here
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib with our style, for one thread at a time: its settings are the process's."""
    with _drawing, matplotlib.rc_context(_STYLE):
        yield


_drawing = threading.Lock()

_around = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL
)

_style_attribute = re.compile(r'style="([^"]*)"')


def svg_of(figure: Figure, description: str, tips: Mapping[str, str] = MappingProxyType({})) -> Markup:
    """The drawing as inline SVG: the page's colours and font, ids of its own, a description for screen readers.

    `tips`: what is shown beside the pointer on a part of it, by the part's `gid`.
    """
    buffer = io.StringIO()
    # not savefig, which draws everything twice
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = _around.sub("", buffer.getvalue()).strip()
    text = _style_attribute.sub(_attributes, text)
    for name, stand_in in COLOURS.items():
        text = re.sub(re.escape(stand_in), f"var(--{name})", text, flags=re.IGNORECASE)
    for part, tip in tips.items():
        text = text.replace(f'<g id="{part}">', f'<g id="{part}">{Markup("<title>{}</title>").format(tip)}', 1)
    prefix = re.sub(r"\W+", "-", description.partition(".")[0].lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    start = r'<svg role="img" viewBox="\1" stroke-linejoin="round" stroke-linecap="butt">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', start, text, count=1)
    end = text.index(">") + 1
    return Markup(text[:end]) + Markup("<title>{}</title>").format(description) + Markup(text[end:])


def _attributes(style: re.Match[str]) -> str:
    """`style="fill: none; stroke-width: 2"` as attributes of the same names; without the font, which is the page's."""
    declared = (declaration.partition(":") for declaration in style[1].split(";"))
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, _, value in declared if name.strip() != "font-family")
