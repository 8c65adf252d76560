"""Charts that follow every control and every new snapshot, and keep the reader's zoom.

`st.plotly_chart` cannot do both. Its identity is made out of its data, so that new data are a new chart in the browser,
drawn whole; where one identity is kept, its front end copies the first figure into its state and never looks at
another. A component of Streamlit's second kind has its key as identity and is called with each new figure:
`chart.js` hands that to `Plotly.react`, which changes what is drawn and leaves what the reader did, by `uirevision`.

Plotly's script is the one that the plotly package brings; the server offers it, nothing comes from elsewhere.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2s
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects as go
import plotly.io as pio
import streamlit as st
from streamlit.components.v1 import declare_component

# Only the first kind of component has its files served from any directory; this one is never drawn.
_LIBRARY = declare_component("plotly", path=Path(plotly.__file__).parent / "package_data")
_CHART = st.components.v2.component(
    "inrank_chart",
    js=Path(__file__).with_name("chart.js").read_text(encoding="utf-8"),
    css=Path(__file__).with_name("chart.css").read_text(encoding="utf-8"),
    isolate_styles=False,  # Plotly's own style rules go into the page's head
)
_HEIGHT = 450  # Plotly's own default


def draw(
    figure: go.Figure, key: str, alt: str, file_name: str, *, link: str = "", clicks: bool = False
) -> list[Any] | None:
    """A figure in the page, with a camera that saves it as PNG.

    Args:
        figure: left as it is.
        key: figures of one key are one chart whose data change; another key is another chart, drawn whole.
        alt: what is seen, for who cannot see it.
        file_name: of the PNG, without its suffix.
        link: charts of one link show where on the x axis the pointer is on one of them.
        clicks: whether a click on a point makes the page run again.

    Returns:
        The `customdata` of the point that was just clicked; None: none was.
    """
    config = {
        "displaylogo": False,
        "displayModeBar": True,  # in a strip of its own, for who has no pointer as well
        "showSendToCloud": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
        "toImageButtonOptions": {"format": "png", "filename": file_name, "scale": 2},
    }
    data = {
        "figure": pio.to_json(_steady(figure.to_dict()), validate=False, remove_uids=False),
        "height": figure.layout.height or _HEIGHT,
        "config": config,
        "label": alt,
        "library": f"component/{_LIBRARY.name}/plotly.min.js",
        "link": link,
        "clicks": clicks,
    }
    # Streamlit refuses some names of runs as keys
    answer = _CHART(key=f"chart {digest(key)}", data=data, on_clicked_change=lambda: None)
    clicked: list[Any] | None = answer.get("clicked")
    return clicked


def _steady(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure's dictionary with the marks by which Plotly finds again what the reader did to an earlier one.

    A zoom stays with its axis while that shows the same quantity on the same scale and, where rows are matrices, the
    same matrices. A line hidden in the legend stays hidden whichever lines come or go before it.
    """
    layout, traces = figure["layout"], figure["data"]
    layout["uirevision"] = "keep"
    rows = str([list(trace["y"]) for trace in traces if trace["type"] == "heatmap"])
    for name in [name for name in layout if name.startswith(("xaxis", "yaxis"))]:
        axis = layout[name]
        shown = (axis.get("title", {}).get("text"), axis.get("type"), rows if name.startswith("y") else "")
        axis["uirevision"] = digest(str(shown))
    seen: Counter[str] = Counter()
    for trace in traces:
        name = f"{trace['type']} {trace.get('legendgroup')} {trace.get('name')} {list(trace.get('meta', ()))[:1]}"
        seen[name] += 1
        trace["uid"] = digest(f"{name} {seen[name]}")
    return figure


def digest(text: str) -> str:
    """A short name for a text, of letters and digits."""
    return blake2s(text.encode(), digest_size=8).hexdigest()
