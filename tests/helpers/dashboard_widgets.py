"""Streamlit's widgets in a real browser: what a reader does with each, to be done on a page later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Act = Callable[[Any], None]


def widget(page: Any, kind: str, label: str) -> Any:
    """One of Streamlit's widgets by its label."""
    return page.locator(f"[data-testid=st{kind}]").filter(has=page.get_by_text(label, exact=True)).first


def select(label: str, option: str) -> Act:
    """Choose in a list of which one is taken."""

    def act(page: Any) -> None:
        widget(page, "Selectbox", label).locator("input").click()
        page.get_by_role("option", name=option, exact=True).click()

    return act


def add(label: str, *options: str) -> Act:
    """Choose in a list of which several are taken, one after the other has been taken up.

    Streamlit draws an open list anew when the script has run: a click that this falls into does nothing, and a reader
    clicks again.
    """

    def act(page: Any) -> None:
        for option in options:
            taken = widget(page, "MultiSelect", label).get_by_text(option, exact=True)
            offered = page.get_by_role("option", name=option, exact=True)
            end = time.monotonic() + 30
            while not taken.count():
                assert time.monotonic() < end, f"{option} cannot be chosen"
                if not offered.count():
                    widget(page, "MultiSelect", label).locator("input").click()
                offered.click()
                page.wait_for_timeout(500)
        page.keyboard.press("Escape")

    return act


def clear(label: str) -> Act:
    """Take all choices in a list back."""
    return lambda page: widget(page, "MultiSelect", label).get_by_role("button", name="Clear all").click()


def radio(label: str, option: str) -> Act:
    """Choose one of some that are all seen."""
    return lambda page: page.get_by_role("radiogroup", name=label, exact=True).get_by_text(option, exact=True).click()


def toggle(label: str) -> Act:
    """Turn a switch."""
    return lambda page: widget(page, "Checkbox", label).get_by_text(label, exact=True).click()


def slide(label: str, key: str, handle: int = 0) -> Act:
    """Move a handle of a slider by a key."""
    return lambda page: widget(page, "Slider", label).get_by_role("slider").nth(handle).press(key)


def number(label: str, value: int) -> Act:
    """Write a number."""

    def act(page: Any) -> None:
        widget(page, "NumberInput", label).locator("input").fill(str(value))
        page.keyboard.press("Enter")

    return act


def write(label: str, text: str) -> Act:
    """Write into a field."""

    def act(page: Any) -> None:
        widget(page, "TextInput", label).locator("input").fill(text)
        page.keyboard.press("Enter")

    return act


def press(label: str) -> Act:
    """Press a button."""
    return lambda page: page.get_by_role("button", name=label).first.click()
