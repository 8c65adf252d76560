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
  const write = (state, title, address) => {
    const other = new URL(address ?? location.href, location.href).href !== location.href;
    (other && acted ? push : replace)(state, title, address);
    if (other) acted = false;
  };
  history.pushState = write;
  history.replaceState = write;
  for (const act of ACTS) window.addEventListener(act, () => (acted = true), true);
  window.addEventListener("popstate", () => (acted = false), true);
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

export default function ({ setStateValue }) {
  tell = setStateValue;
  if (window.inrankPage) return;
  window.inrankPage = true;
  keepHistory();
  noteKeys();
}
