// A Plotly figure that takes up new data in place.
//
// Streamlit calls this with every change of the figure. Plotly.react then moves what is drawn, and keeps the reader's
// zoom and hidden lines for as long as the figure's `uirevision`s stay as they were.

const EXPAND = {
  width: 448,
  height: 448,
  path: "M0 0v160h64V64h96V0H0zm288 0v64h96v96h64V0H288zM0 288v160h160v-64H64v-96H0zm384 0v96h-96v64h160V288h-64z",
};

const STRIP = 26; // pixels above a figure, as in chart.css

let library; // one for all charts of the page

function load(address) {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      library = undefined; // the next figure tries again
      reject(new Error(`Plotly could not be loaded from ${address}`));
    };
    document.head.append(script);
  });
  return library;
}

function apart(one, other) {
  const [first, second] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
  return first.right + 4 < second.left || second.right + 4 < first.left;
}

// Powers of ten stay before what lies between them.
function byDigit(labels) {
  const order = (label) => ("15372468".indexOf(label.textContent.replace(/[0.]/g, "")[0]) + 9) % 9;
  const kept = new Set();
  for (const label of [...labels].sort((one, other) => order(one) - order(other))) {
    if ([...kept].every((other) => apart(label, other))) kept.add(label);
  }
  return kept;
}

// Every one, every second, every third: whichever first has room.
function evenly(labels) {
  for (let stride = 1; ; stride++) {
    const kept = labels.filter((_, place) => place % stride === 0);
    if (kept.slice(1).every((label, place) => apart(label, kept[place]))) return new Set(kept);
  }
}

// Margins that charts came to. Plotly draws a figure with the margins it is given, sees that legend and labels need more,
// and draws all of it again; given what it came to last time, it draws once.
const rooms = new Map();

function outline({ data, layout }, width) {
  const axes = Object.entries(layout).filter(([name]) => /^[xy]axis/.test(name));
  const words = axes.map(([name, axis]) => [name, axis.title?.text, axis.ticktext]);
  const legend = data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name);
  return JSON.stringify([Math.round(width), layout.height, layout.margin, words, legend]);
}

// A chart that cannot be seen yet is drawn when the browser has nothing else to do: what can be seen is there sooner.
function turn(element) {
  if (element.getBoundingClientRect().top < window.innerHeight) return null;
  const idle = window.requestIdleCallback ?? setTimeout; // Safari has none
  return new Promise((resolve) => idle(resolve));
}

const linked = new Set(); // charts over one axis: the pointer on one is shown on all

class Chart {
  constructor(parent) {
    this.parent = parent;
    this.element = document.createElement("div");
    this.element.setAttribute("role", "figure");
    parent.append(this.element);
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(parent);
    this.button = this.fullScreenButton(); // one for good: a config that differs makes Plotly begin anew, zoom and all
    this.turned = () => this.draw();
    this.element.addEventListener("fullscreenchange", this.turned);
  }

  take(data) {
    this.figure = data.figure;
    this.height = data.height;
    this.link = data.link;
    this.clicks = data.clicks;
    this.config = { ...data.config, modeBarButtonsToAdd: [this.button] };
    this.element.setAttribute("aria-label", data.label);
    this.element.style.minHeight = `${data.height + STRIP}px`; // nothing below jumps while Plotly is loaded
  }

  async draw() {
    const { data, layout } = JSON.parse(this.figure); // anew: Plotly writes into what it draws
    const full = document.fullscreenElement === this.element;
    layout.height = full ? window.innerHeight - STRIP : this.height;
    const outlined = outline({ data, layout }, this.parent.getBoundingClientRect().width);
    if (rooms.has(outlined)) layout.margin = rooms.get(outlined);
    await this.plotly.react(this.element, data, layout, this.config);
    const { l, r, t, b } = this.element._fullLayout._size;
    rooms.set(outlined, { l, r, t, b });
    this.listen();
  }

  listen() {
    if (this.listening) return;
    this.listening = true;
    linked.add(this);
    this.element.on("plotly_afterplot", () => this.thinLabels());
    this.thinLabels();
    this.element.on("plotly_click", ({ points }) => {
      const told = points.map((point) => point.customdata).find((one) => Array.isArray(one));
      if (this.clicks && told) this.send("clicked", told);
    });
    this.element.on("plotly_hover", ({ points }) => this.point(points[0]?.x));
    this.element.on("plotly_unhover", () => this.point(null));
  }

  point(x) {
    if (!this.link) return;
    for (const chart of linked) if (chart.link === this.link) chart.showCursor(chart === this ? null : x);
  }

  showCursor(x) {
    const layout = this.element._fullLayout;
    if (!this.cursor) {
      this.cursor = document.createElement("div");
      this.cursor.className = "inrank-cursor";
      this.element.append(this.cursor);
    }
    const at = x == null || !layout ? NaN : layout.xaxis.d2p(x);
    const inside = at >= 0 && at <= layout?.xaxis._length;
    this.cursor.style.display = inside ? "block" : "none";
    if (!inside) return;
    const { l, t } = layout._size;
    Object.assign(this.cursor.style, { left: `${l + at}px`, top: `${t + STRIP}px`, height: `${layout._size.h}px` });
  }

  // Labels at places of our own that would lie over one another: Plotly thins only those that it has chosen itself.
  thinLabels() {
    for (const [name, axis] of Object.entries(this.element._fullLayout)) {
      if (!name.startsWith("xaxis") || axis.tickmode !== "array") continue;
      const labels = [...this.element.querySelectorAll(`.${name.replace("axis", "")}tick > text`)];
      const kept = axis.type === "log" ? byDigit(labels) : evenly(labels);
      for (const label of labels) label.style.visibility = kept.has(label) ? "" : "hidden";
    }
  }

  fit() {
    const width = this.parent.getBoundingClientRect().width; // Plotly's has fractions too
    if (this.element._fullLayout && width > 0 && Math.abs(width - this.element._fullLayout.width) >= 1) {
      this.plotly.Plots.resize(this.element);
    }
  }

  fullScreenButton() {
    const turn = () =>
      document.fullscreenElement ? document.exitFullscreen() : this.element.requestFullscreen();
    return { name: "fullscreen", title: "Full screen", icon: EXPAND, click: turn };
  }

  remove() {
    linked.delete(this);
    this.resized.disconnect();
    this.element.removeEventListener("fullscreenchange", this.turned);
    this.plotly?.purge(this.element);
    this.element.remove();
  }
}

const charts = new WeakMap();

export default async function ({ data, parentElement, setTriggerValue }) {
  let chart = charts.get(parentElement);
  if (!chart) {
    chart = new Chart(parentElement);
    charts.set(parentElement, chart);
  }
  chart.take(data);
  chart.send = setTriggerValue;
  chart.plotly = await load(new URL(data.library, document.baseURI).href);
  await turn(chart.element);
  if (parentElement.isConnected) await chart.draw();
  return () => {
    // Streamlit also calls this for a turn that a newer one has overtaken: the chart is then still there.
    if (parentElement.isConnected) return;
    chart.remove();
    charts.delete(parentElement);
  };
}
