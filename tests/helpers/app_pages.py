"""Pages of the dashboard as Streamlit's AppTest draws them, and the figures that they send to the browser."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from inrank_monitor.console import app_directory

APP = app_directory() / "streamlit_app.py"
VIEWS = (
    "Runs",
    "Overview",
    "Matrix",
    "Rank evolution",
    "Spectrum density",
    "Spectrum evolution",
    "Explained ratio",
    "Compare",
    "Advice",
)


def show(view: str, **address: Any) -> AppTest:
    """The page at an address, drawn once."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in {"view": view, **address}.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception[0]
    return app


def open_papers(app: AppTest) -> AppTest:
    """The same page with what is "For a paper" below each figure opened."""
    for popover in app.get("popover"):
        _, found, key = popover.proto.popover.id.partition("-paper ")  # ends with the key that the page gave it
        if found:
            app.session_state[f"paper {key}"] = True
    return app.run()


def turn_to(app: AppTest, view: str) -> AppTest:
    """The same page at another view."""
    app.query_params["view"] = view
    return app.run()


def sent(app: AppTest) -> list[str]:
    """The page's figures as they are sent."""
    parts = [json.loads(part.proto.json) for part in app.get("bidi_component")]
    return [part["figure"] for part in parts if "figure" in part]


def specs(app: AppTest) -> list[dict[str, Any]]:
    """The page's figures as their JSON."""
    return [json.loads(figure) for figure in sent(app)]


def numbers(value: Any) -> np.ndarray:
    """A trace's array, which Plotly packs where it can."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"]).astype(float)
        return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat
    return np.array([np.nan if entry is None else entry for entry in value], dtype=float)


def texts(app: AppTest) -> str:
    """All that the page says outside of figures and tables."""
    parts = (*app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.title, *app.header)
    return "\n".join(str(part.value) for part in parts)
