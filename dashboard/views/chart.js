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

function rank(label) {
  const place = "15372468".indexOf(label.textContent.replace(/[0.]/g, "")[0]);
  return place < 0 ? 9 : place;
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
    await this.plotly.react(this.element, data, layout, this.config);
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

  // Labels of a logarithmic axis that would lie over one another: powers of ten stay before what lies between them.
  thinLabels() {
    for (const [name, axis] of Object.entries(this.element._fullLayout)) {
      if (!name.startsWith("xaxis") || axis.type !== "log") continue;
      const labels = [...this.element.querySelectorAll(`.${name.replace("axis", "")}tick > text`)];
      const kept = [];
      for (const label of labels.sort((one, other) => rank(one) - rank(other))) {
        const { left, right } = label.getBoundingClientRect();
        const free = kept.every((other) => right + 4 < other.left || left > other.right + 4);
        label.style.visibility = free ? "" : "hidden";
        if (free) kept.push({ left, right });
      }
    }
  }

  fit() {
    const width = this.parent.clientWidth;
    if (this.element._fullLayout && width > 0 && width !== this.element._fullLayout.width) {
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
  await chart.draw();
  return () => {
    // Streamlit also calls this for a turn that a newer one has overtaken: the chart is then still there.
    if (parentElement.isConnected) return;
    chart.remove();
    charts.delete(parentElement);
  };
}
