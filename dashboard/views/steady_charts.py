"""Charts that stay when their data change.

Streamlit 1.67 makes a Plotly chart's identity out of its data, so that a browser throws the chart away, zoom and all,
whenever a live run grows. For widgets it lets the key be the identity; here charts get the same.
"""

from __future__ import annotations

from typing import Any

from streamlit.elements import plotly_chart

_NAME = "compute_and_register_element_id"


def install() -> None:
    """Let a chart's key be its identity; without effect where Streamlit has no such place (zoom is lost then)."""
    original = getattr(plotly_chart, _NAME, None)
    if original is None or hasattr(original, "charts_are_steady"):
        return

    def by_key(kind: str, *, user_key: str | None = None, **options: Any) -> Any:
        if user_key is not None and "key_as_main_identity" in options:
            options["key_as_main_identity"] = True
        return original(kind, user_key=user_key, **options)

    by_key.charts_are_steady = True  # type: ignore[attr-defined]
    setattr(plotly_chart, _NAME, by_key)
