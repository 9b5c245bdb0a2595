// The map: a region of the pad for every distinct text, with exact borders, or as a sweep over a grid finds them.

import { freshId, h, oncePerFrame, svg } from "./dom.js";
import { placeNumber } from "./labels.js";
import { mixColour } from "./lanes.js";
import { createRegions } from "./mapping.js";
import { steer } from "./point.js";
import { createPolygons } from "./polygons.js";
import { textList } from "./regions.js";
import { isCertain, isPlain, named, sampling, subjectOf, subjectOfSweep, topic } from "./request.js";
import { cellsOf, polygonsOf } from "./shapes.js";
import { compositions, toPoint } from "./simplex.js";
import { createRun } from "./sweeping.js";

const EXACT = "exact";
const GRIDS = [[EXACT, "exact borders"], [10, "66 points"], [20, "231 points"], [30, "496 points"]];
const RATHER = 20; // the grid, where borders cannot be exact or would be too many
const MOST = 400; // exact regions; more cannot be told apart on the pad
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
  let whyNot = null; // the borders are not exact, though they were asked for
  let lit = null;
  const paintSoon = oncePerFrame(() => paint());
  const run = createRun(
    (event) => {
      actions.fine();
      if (event.type === "item") {
        regions.add(event.weights, event.text);
        progress.value = event.completed / event.total;
        counted.textContent = `${event.completed} of ${event.total}`;
      } else if (event.type === "region") take(event);
      else whyNot = event.why_not ?? whyNot;
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
    const exact = grid.value === EXACT;
    whyNot = exact && !isPlain(state) ? "the options let chance or earlier words decide" : null;
    if (exact && whyNot === null) byBorders(state);
    else byPoints(state, exact ? RATHER : Number(grid.value));
    buttons();
    paint();
    return undefined;
  }

  function byBorders(state) {
    show(createPolygons(), state);
    const corners = state.axes.map((name) => ({ [name]: 1 }));
    const most = { max_regions: Math.min(MOST, state.limits.max_sweep), max_new_tokens: state.options.max_new_tokens };
    run.start("/sweep/map", { ...subjectOf(state), corners, resolution: RATHER, ...most });
    progress.removeAttribute("value");
    counted.textContent = "";
  }

  function byPoints(state, resolution) {
    const counts = compositions(resolution, 3);
    show(createRegions(counts), state);
    const weights = counts.map((each) => named(state.axes, each.map((count) => count / resolution)));
    run.start("/sweep", { ...subjectOfSweep(state), weights, ...sampling(state) });
    progress.value = 0;
    counted.textContent = `0 of ${counts.length}`;
  }

  /** From now on these are drawn. */
  function show(mine, state) {
    regions = mine;
    const drawn = topic(state);
    const certain = isCertain(state);
    const textAt = (now) => (certain && topic(now) === drawn ? mine.textAt(now.weights) : null);
    store.set({ map: { resolution: mine.resolution, topic: drawn, textAt } });
  }

  /** One region of `/sweep/map`; with the first one that has points it is a grid after all. */
  function take({ polygon, points, text, share }) {
    if (points.length && regions.resolution === null) {
      const { map } = store.state;
      const mine = (regions = createRegions(compositions(RATHER, 3)));
      store.set({ map: { ...map, resolution: RATHER, textAt: (now) => (topic(now) === map.topic ? mine.textAt(now.weights) : null) } });
    }
    if (points.length) for (const point of points) regions.place(point, text);
    else regions.add(polygon, text, share);
    const known = regions.describe().length;
    counted.textContent = `${known} ${known === 1 ? "text" : "texts"}`;
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
    const exact = regions.resolution === null;
    const spacing = exact ? null : geometry.side / regions.resolution;
    const taken = geometry.taken();
    cells.replaceChildren(...(exact ? polygonsOf(regions, geometry.place, colour) : cellsOf(regions, at, spacing, colour)));
    numbers.replaceChildren(...found.map((region, i) => number(region, i, spacing, taken)));
    if (run.busy) return;
    const texts = `${found.length} ${found.length === 1 ? "text" : "texts"}`;
    const why = whyNot === null ? "" : ` Not exact: ${whyNot}.`;
    told.textContent = exact ? `${texts}, with exact borders.` : `${texts} on ${regions.size} points.${why}`;
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
    const middle = spacing === null ? at(region.middle) : inside(region.middle);
    const room = spacing ?? 2 * region.room * geometry.side;
    const { x, y, size, fits } = placeNumber(region.cells?.map(inside) ?? [middle], middle, room, text, taken);
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
