"""One module a view: `choose(page)` draws its widgets, `show(page, choice)` its tables and figures.

`show` runs again by itself while a run is live; `choose` does not, so that nothing moves under the reader's hand.
"""
