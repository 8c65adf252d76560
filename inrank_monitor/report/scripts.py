"""The few lines of script of the page, each named by its hash in the page's policy: tables that sort, figures."""

from __future__ import annotations

# A head is a button, so that the keyboard reaches it. What is no number is last, whichever way.
TABLE_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) continue;
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, place) => row.cells[place].textContent;
  const sort = (place, words, sign) => {
    const rows = [...body.rows].map((row) => [words ? value(row, place) : parseFloat(value(row, place)), row]);
    const missing = (it) => (words ? it === "" || it === "-" : Number.isNaN(it));
    const compare = words ? (a, b) => a.localeCompare(b, undefined, {numeric: true}) : (a, b) => a - b;
    rows.sort(([a], [b]) => (missing(a) || missing(b) ? missing(a) - missing(b) : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, place) => {
    const words = head.classList.contains("text");
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = words ? "ascending" : "descending";
      const turned = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? turned : first;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      sort(place, words, order === "ascending" ? 1 : -1);
    });
  });
  const more = table.parentElement.nextElementSibling;
  if (more && more.matches("button.more")) {
    table.classList.add("folded");
    more.hidden = false;
    more.addEventListener("click", () => { table.classList.remove("folded"); more.remove(); });
  }
}
"""

# Blocks are inert: base 85 of a compressed text. Only this script and what the policy names of them runs.
DRAW_SCRIPT = """
const LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
async function unpacked(name) {
  const block = document.getElementById("packed-" + name);
  const worth = new Uint8Array(128);
  for (let i = 0; i < 85; i += 1) worth[LETTERS.charCodeAt(i)] = i;
  const text = block.textContent;
  const bytes = new DataView(new ArrayBuffer(text.length / 5 * 4));
  for (let from = 0, to = 0; from < text.length; from += 5, to += 4) {
    let number = 0;
    for (let i = 0; i < 5; i += 1) number = number * 85 + worth[text.charCodeAt(from + i)];
    bytes.setUint32(to, number);
  }
  const content = new Blob([bytes.buffer.slice(0, Number(block.dataset.bytes))]);
  return new Response(content.stream().pipeThrough(new DecompressionStream("deflate"))).text();
}
async function draw() {
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library);
  const figures = JSON.parse(await unpacked("figures"));
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = figures[place.dataset.figure];
    Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false});
  }
}
draw().catch((error) => {
  for (const place of document.querySelectorAll("[data-figure]")) {
    place.textContent = "This figure needs a browser of 2023 or later (" + error + ").";
  }
});
"""
