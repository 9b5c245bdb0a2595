// The map: one sweep over the pad, and a region for every distinct text.

import { freshId, h, oncePerFrame, svg } from "./dom.js";
import { mixColour } from "./lanes.js";
import { createRegions } from "./mapping.js";
import { steer } from "./point.js";
import { textList } from "./regions.js";
import { named, sampling } from "./request.js";
import { compositions, toPoint } from "./simplex.js";
import { createRun, subject } from "./sweeping.js";

const GRIDS = [[10, "66 points"], [20, "231 points"], [30, "496 points"]];
const IDLE = "Point at the map to read its texts; a click takes one.";
const LABEL_FROM = 0.03; // of the pad, so that a number has room in its region

/** `geometry`: {place(point) -> picture, side}. Gives the layer for the pad, its controls, the list of texts, and `peek(weights)`. */
export function createMap(store, actions, geometry) {
  const layer = svg("g", { class: "map", "clip-path": "url(#pad-clip)" });
  const grid = h("select", { "aria-label": "Points of the map" },
    GRIDS.map(([value, text]) => h("option", { value: String(value), selected: value === 20 }, text)));
  const draw = h("button", { type: "button", on: { click: () => start() } }, "Draw the map");
  const hide = h("button", { type: "button", hidden: true, on: { click: () => off() } }, "Hide");
  const progress = h("progress", { max: "1", value: 0, hidden: true, "aria-label": "Map" });
  const told = h("p", { class: "hint", role: "status" });
  const peeked = h("p", { class: "peek", hidden: true });
  const list = h("div", { id: freshId("map-texts") });
  const controls = h("div", { class: "map-panel" }, h("div", { class: "row" }, draw, hide, grid, progress), told, peeked);
  let regions = null;
  let lit = null;
  const paintSoon = oncePerFrame(() => paint());
  const run = createRun(
    (event) => {
      actions.fine();
      if (event.type !== "item") return;
      regions.add(event.weights, event.text);
      progress.value = event.completed / event.total;
      paintSoon();
    },
    (error) => {
      buttons();
      paint();
      if (error === null) return;
      const missing = regions.missing;
      if (missing) off();
      actions.trouble(error, start);
    },
  );

  function start() {
    const { state } = store;
    if (!state.prompt.trim()) return actions.needPrompt();
    const resolution = Number(grid.value);
    const counts = compositions(resolution, 3);
    regions = createRegions(counts);
    store.set({ map: { resolution, subject: subject(state) } });
    const weights = counts.map((each) => named(state.axes, each.map((count) => count / resolution)));
    run.start("/sweep", { prompts: [state.prompt.trim()], weights, ...sampling(state) });
    progress.value = 0;
    buttons();
    paint();
    return undefined;
  }

  function off() {
    run.stop();
    regions = null;
    store.set({ map: null });
    buttons();
    paint();
  }

  function buttons() {
    hide.hidden = regions === null;
    progress.hidden = !run.busy;
    draw.textContent = regions === null ? "Draw the map" : "Redraw";
  }

  function paint() {
    lit = null;
    peek(null);
    if (regions === null) {
      layer.replaceChildren();
      list.replaceChildren();
      told.textContent = "";
      return;
    }
    const { axes, objectives } = store.state;
    const found = regions.describe();
    const colour = (region) => mixColour(axes, region.centre, objectives, region.fade);
    const spacing = geometry.side / regions.resolution;
    layer.replaceChildren(
      ...found.flatMap((region, i) => region.cells.map((cell) => hexagon(at(cell), spacing, colour(region), i))),
      svg("path", { class: "map-borders", d: regions.borders().map(([a, b]) => border(at(a), at(b), spacing)).join("") }),
      ...found.map((region, i) => (region.share < LABEL_FROM ? null : number(at(region.middle), i + 1))).filter(Boolean),
    );
    if (run.busy) return;
    told.textContent = `${found.length} ${found.length === 1 ? "text" : "texts"} on ${regions.size} points.`;
    list.replaceChildren(textList(
      found.map((region) => ({ ...region, colour: colour(region), take: () => steer(store, region.middle) })), look));
  }

  const at = (weights) => geometry.place(toPoint(weights));

  function look(index) {
    if (lit === index) return;
    lit = index;
    for (const cell of layer.querySelectorAll(".cell")) cell.classList.toggle("lit", Number(cell.dataset.region) === index);
  }

  function peek(weights) {
    const index = weights === null || regions === null ? null : regions.at(weights);
    look(index);
    peeked.hidden = regions === null;
    peeked.textContent = index === null ? IDLE : `${index + 1}. ${regions.textOf(index) || "(no text)"}`;
  }

  store.watch(["prompt", "options", "map"], (state) => {
    const stale = state.map !== null && state.map.subject !== subject(state);
    layer.classList.toggle("stale", stale);
    list.classList.toggle("stale", stale);
    if (stale) told.textContent = "This map is of another prompt or other options.";
  });
  return { layer, controls, list, peek };
}

/** A cell: all points nearer to this one than to any other of the grid; the pad's edge cuts it. */
function hexagon({ x, y }, spacing, colour, region) {
  const radius = (spacing / Math.sqrt(3)) * 1.02; // a hair larger, so that no ground shows between cells
  const points = [30, 90, 150, 210, 270, 330].map((degrees) => {
    const angle = (degrees * Math.PI) / 180;
    return `${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`;
  });
  return svg("polygon", { points: points.join(" "), class: "cell", "data-region": String(region), vars: { "--fill": colour } });
}

/** The edge between two neighbouring cells, as a piece of a path. */
function border(a, b, spacing) {
  const [mx, my] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
  const half = spacing / Math.sqrt(3) / 2;
  const [dx, dy] = [((b.y - a.y) / spacing) * half, (-(b.x - a.x) / spacing) * half];
  return `M${(mx - dx).toFixed(2)} ${(my - dy).toFixed(2)}L${(mx + dx).toFixed(2)} ${(my + dy).toFixed(2)}`;
}

const number = ({ x, y }, text) => svg("text", { x, y: y + 4, class: "map-number", "text-anchor": "middle" }, String(text));
