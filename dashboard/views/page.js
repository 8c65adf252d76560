// What the page itself needs of the browser: one entry of its history a change, and whether a cell was chosen by key.
//
// Streamlit writes the address in several steps. A control replaces the entry, so that Back would leave the page; a new
// view pushes one entry for its path and another for what it lets go, so that Back would have to be pressed twice. Here
// whatever follows one act of the reader shares one entry, and what follows none has no entry of its own.

const ACTS = ["pointerdown", "keydown", "change"];

function keepHistory() {
  const push = history.pushState.bind(history);
  const replace = history.replaceState.bind(history);
  let acted = false; // the reader has done something that the address does not tell yet
  let shown = new URL(location.href);
  const write = (state, title, address) => {
    const other = new URL(address ?? location.href, location.href).href !== location.href;
    (other && acted ? push : replace)(state, title, address);
    if (other) acted = false;
    shown = new URL(location.href);
  };
  history.pushState = write;
  history.replaceState = write;
  for (const act of ACTS) window.addEventListener(act, () => (acted = true), true);
  const turned = (event) => {
    acted = false;
    const before = shown;
    shown = new URL(location.href);
    if (!restorable || before.pathname !== shown.pathname) return;
    // Streamlit takes back what the address says otherwise, but leaves a control where it says nothing of it any more.
    if ([...before.searchParams.keys()].every((name) => shown.searchParams.has(name))) return;
    event.stopImmediatePropagation();
    location.reload();
  };
  window.addEventListener("popstate", turned, true);
  dropFirstEntry(replace);
}

// Before this was here, Streamlit may have pushed what the page chose by itself, the newest run say.
function dropFirstEntry(replace) {
  const [loaded] = performance.getEntriesByType("navigation");
  const now = location.href;
  if (!loaded || loaded.name === now || navigator.userActivation?.hasBeenActive) return;
  const instead = (event) => {
    event.stopImmediatePropagation(); // nothing has changed for the reader
    replace({}, "", now);
  };
  window.addEventListener("popstate", instead, { capture: true, once: true });
  history.back();
}

let restorable = true; // the address says all, so that the page can be loaded from it
let tell = () => {};
let byKey = false;

// A table opens the cell that is clicked, not each one that the arrow keys come by.
function noteKeys() {
  const note = (key) => (event) => {
    if (key === byKey || !event.target.closest?.("[data-testid=stDataFrame]")) return;
    byKey = key;
    tell("by_key", key);
  };
  window.addEventListener("keydown", note(true), true);
  window.addEventListener("pointerdown", note(false), true);
}

export default function ({ data, setStateValue }) {
  tell = setStateValue;
  restorable = data.restorable;
  if (window.inrankPage) return;
  window.inrankPage = true;
  keepHistory();
  noteKeys();
}
