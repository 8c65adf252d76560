"""The look of the page."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2024; --soft: #5a626b; --line: #d9dde2;
  --card: #f6f7f9;
  --accent: #0072b2; --warn: #b34700; }
@media (prefers-color-scheme: dark) { :root { --page: #101418; --ink: #e6e9ec; --soft: #a3abb4;
  --line: #2c333a;
  --card: #171c21; --accent: #56b4e9; --warn: #f0a050; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; padding-top: 14px; border-top: 1px solid var(--line); }
h2.part { margin-top: 26px; border: 0; padding: 0; font-size: 17px; }
h3 { font-size: 14px; margin: 10px 0 0; overflow-wrap: anywhere; font-weight: 600; }
.status { color: var(--soft); margin: 4px 0 0; }
.verdict { font-size: 17px; margin: 18px 0 0; padding: 12px 16px; background: var(--card);
  border-left: 4px solid var(--accent); }
.caption { margin: 2px 0; max-width: 95ch; }
.caption + .caption { color: var(--soft); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px; }
.pair > * { min-width: 0; }
.figure { width: 100%; }
ul.notes { margin: 14px 0 0; padding: 10px 16px 10px 34px; background: var(--card);
  border-left: 4px solid var(--warn); }
ul.notes li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: 10px 0; }
th, td { padding: 3px 7px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; position: sticky; top: 0; background: var(--page); }
th.text, td.text { text-align: left; }
th[aria-sort] { padding: 0; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 3px 7px; cursor: pointer;
  width: 100%; text-align: inherit; }
th[aria-sort="ascending"] button::after { content: " ▲" / ""; }
th[aria-sort="descending"] button::after { content: " ▼" / ""; }
table.folded tbody tr:nth-child(n + 61) { display: none; }
button.more { font: inherit; color: var(--accent); background: none; border: 0; padding: 4px 0; cursor: pointer; }
td.long { white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; }
tbody tr:hover { background: var(--card); }
a { color: var(--accent); }
td.agrees, td.disagrees { font-weight: 600; }
td.agrees { color: var(--accent); }
td.disagrees { color: var(--warn); }
td.not-tested, td.within-noise { color: var(--soft); }
details > summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
footer { margin-top: 44px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 13px; }
footer p { max-width: 95ch; }
.main-svg .infolayer [class$="title"], .main-svg .infolayer [class$="title"] text, .main-svg .legendtext,
.main-svg [class$="tick"] text, .main-svg .cbaxis text { fill: var(--soft) !important; }
@media (max-width: 900px) { .pair { grid-template-columns: 1fr; } main { padding: 18px 12px 48px; } }
@media print { table.folded tbody tr { display: table-row !important; } button.more { display: none; } }
@media print { .modebar { display: none; } details:not([open]) > *:not(summary) { display: block; } }
"""
