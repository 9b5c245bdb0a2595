// The map: one sweep over the pad, and a region for every distinct text.

import { freshId, h, oncePerFrame, svg } from "./dom.js";
import { placeNumber } from "./labels.js";
import { mixColour } from "./lanes.js";
import { createRegions } from "./mapping.js";
import { steer } from "./point.js";
import { textList } from "./regions.js";
import { isCertain, named, sampling, subjectOfSweep, topic } from "./request.js";
import { compositions, toPoint } from "./simplex.js";
import { createRun } from "./sweeping.js";

const GRIDS = [[10, "66 points"], [20, "231 points"], [30, "496 points"]];
const IDLE = "Point at the map to read its texts; a click takes one.";
const FROM_EDGE = 0.045; // as a weight

/** `geometry`: {place(point) -> picture, side, taken()}. Gives the layer for the pad, its controls, the list of texts, and `peek(weights)`. */
export function createMap(store, actions, geometry) {
  const cells = svg("g", { "clip-path": "url(#pad-clip)" });
  const numbers = svg("g", {}); // never cut by the edge
  const layer = svg("g", { class: "map" }, cells, numbers);
  const grid = h("select", { "aria-label": "Points of the map" },
    GRIDS.map(([value, text]) => h("option", { value: String(value) }, text)));
  const draw = h("button", { type: "button", on: { click: () => start() } }, "Draw the map");
  const hide = h("button", { type: "button", hidden: true, on: { click: () => off() } }, "Hide");
  const progress = h("progress", { max: "1", value: 0, hidden: true, "aria-label": "Map" });
  const told = h("p", { class: "hint", role: "status" });
  const counted = h("span", { class: "hint counted", hidden: true });
  const peeked = h("p", { class: "peek", hidden: true });
  const list = h("div", { id: freshId("map-texts") });
  const controls = h("div", { class: "map-panel" }, h("div", { class: "row" }, draw, hide, grid, progress, counted), told, peeked);
  let regions = null;
  let lit = null;
  const paintSoon = oncePerFrame(() => paint());
  const run = createRun(
    (event) => {
      actions.fine();
      if (event.type !== "item") return;
      regions.add(event.weights, event.text);
      progress.value = event.completed / event.total;
      counted.textContent = `${event.completed} of ${event.total}`;
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
    const mine = (regions = createRegions(counts));
    const drawn = topic(state);
    const certain = isCertain(state);
    const textAt = (now) => (certain && topic(now) === drawn ? mine.textAt(now.weights) : null);
    store.set({ map: { resolution, topic: drawn, textAt } });
    const weights = counts.map((each) => named(state.axes, each.map((count) => count / resolution)));
    run.start("/sweep", { ...subjectOfSweep(state), weights, ...sampling(state) });
    progress.value = 0;
    counted.textContent = `0 of ${counts.length}`;
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
    progress.hidden = counted.hidden = !run.busy;
    draw.textContent = regions === null ? "Draw the map" : "Redraw";
  }

  function paint() {
    lit = null;
    peek(null);
    if (regions === null) {
      cells.replaceChildren();
      numbers.replaceChildren();
      list.replaceChildren();
      told.textContent = "";
      return;
    }
    const { axes, objectives } = store.state;
    const found = regions.describe();
    const colour = (region) => mixColour(axes, region.centre, objectives, region.fade);
    const spacing = geometry.side / regions.resolution;
    const taken = geometry.taken();
    cells.replaceChildren(
      ...found.flatMap((region, i) => region.cells.map((cell) => hexagon(at(cell), spacing, colour(region), i))),
      svg("path", { class: "map-borders", d: regions.borders().map(([a, b]) => border(at(a), at(b), spacing)).join("") }),
    );
    numbers.replaceChildren(...found.map((region, i) => number(region, i, spacing, taken)));
    if (run.busy) return;
    told.textContent = `${found.length} ${found.length === 1 ? "text" : "texts"} on ${regions.size} points.`;
    list.replaceChildren(textList(
      found.map((region) => ({ ...region, colour: colour(region), take: () => steer(store, region.middle) })), look));
  }

  const at = (weights) => geometry.place(toPoint(weights));
  /** The same, but so far from the edges that a number has room. */
  function inside(weights) {
    const spare = weights.map((weight) => Math.max(0, weight - FROM_EDGE));
    const left = (1 - 3 * FROM_EDGE) / spare.reduce((sum, each) => sum + each, 0);
    return at(spare.map((each) => FROM_EDGE + left * each));
  }

  function number(region, i, spacing, taken) {
    const text = String(i + 1);
    const { x, y, size, fits } = placeNumber(region.cells.map(inside), inside(region.middle), spacing, text, taken);
    return svg("text", { x, y: y + size / 3, class: fits ? "map-number" : "map-number tiny", "data-region": i, "text-anchor": "middle", vars: { "--size": `${size}px` } }, text);
  }

  function look(index) {
    if (lit === index) return;
    lit = index;
    for (const each of layer.querySelectorAll("[data-region]")) each.classList.toggle("lit", Number(each.dataset.region) === index);
  }

  function peek(weights) {
    const index = weights === null || regions === null ? null : regions.at(weights);
    look(index);
    peeked.hidden = regions === null;
    peeked.textContent = index === null ? IDLE : `${index + 1}. ${regions.textOf(index) || "(no text)"}`;
  }

  store.watch(["prompt", "turns", "system", "options", "map"], (state) => {
    const stale = state.map !== null && state.map.topic !== topic(state);
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
  return svg("polygon", { points: points.join(" "), class: "cell", "data-region": region, vars: { "--fill": colour } });
}

/** The edge between two neighbouring cells, as a piece of a path. */
function border(a, b, spacing) {
  const [mx, my] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
  const half = spacing / Math.sqrt(3) / 2;
  const [dx, dy] = [((b.y - a.y) / spacing) * half, (-(b.x - a.x) / spacing) * half];
  return `M${(mx - dx).toFixed(2)} ${(my - dy).toFixed(2)}L${(mx + dx).toFixed(2)} ${(my + dy).toFixed(2)}`;
}
