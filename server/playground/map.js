// The map: a region of the pad for every distinct text, with exact borders, or as a sweep over a grid finds them.

import { freshId, h, oncePerFrame, svg } from "./dom.js";
import { createDrawing, isStale } from "./drawing.js";
import { placeNumber } from "./labels.js";
import { mixColour } from "./lanes.js";
import { createRegions } from "./mapping.js";
import { steer } from "./point.js";
import { createPolygons } from "./polygons.js";
import { textList } from "./regions.js";
import { isCertain, isPlain, named, sampling, subjectOf, subjectOfSweep, topic } from "./request.js";
import { cellsOf, polygonsOf } from "./shapes.js";
import { compositions, toPoint } from "./simplex.js";

const EXACT = "exact";
const GRIDS = [[EXACT, "exact borders"], [10, "66 points"], [20, "231 points"], [30, "496 points"]];
// `most`: exact regions, more cannot be told apart on the pad; `rather`: the grid where there would be more.
const BY_HAND = { most: 400, rather: 20 };
const BY_ITSELF = { most: 100, rather: 10 };
const IDLE = "Point at the map to read its texts; a click takes one.";
const FROM_EDGE = 0.045; // as a weight

/** `geometry`: {place(point) -> picture, side, taken()}. Gives the layer for the pad, its controls, the list of texts, and `peek(weights)`. */
export function createMap(store, actions, geometry) {
  const cells = svg("g", { "clip-path": "url(#pad-clip)" });
  const numbers = svg("g", {}); // never cut by the edge
  const layer = svg("g", { class: "map" }, cells, numbers);
  const grid = h("select", { "aria-label": "Points of the map" },
    GRIDS.map(([value, text]) => h("option", { value: String(value) }, text)));
  const draw = h("button", { type: "button", on: { click: () => drawing.start() } }, "Draw the map");
  const hide = h("button", { type: "button", hidden: true, on: { click: () => drawing.hide() } }, "Hide");
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
  const drawing = createDrawing(store, actions, {
    request, take, paint, forget,
    isEmpty: () => regions.describe().length === 0,
    isWhole: () => !regions.missing,
    isExact: () => grid.value === EXACT,
  });

  function request(state, own) {
    const exact = grid.value === EXACT;
    whyNot = exact && !isPlain(state) ? "the options let chance or earlier words decide" : null;
    if (!exact || whyNot !== null) return byPoints(state, exact ? BY_HAND.rather : Number(grid.value));
    const { most, rather } = own ? BY_ITSELF : BY_HAND;
    const goesOn = state.map?.topic === topic(state) && regions.resolution === null; // what was found before stays
    if (!goesOn) show(createPolygons());
    progress.removeAttribute("value");
    counted.textContent = "";
    const corners = state.axes.map((name) => ({ [name]: 1 }));
    const bounds = { max_regions: Math.min(most, state.limits.max_sweep), max_new_tokens: state.options.max_new_tokens };
    return ["/sweep/map", { ...subjectOf(state), corners, resolution: rather, ...bounds }];
  }

  function byPoints(state, resolution) {
    const counts = compositions(resolution, 3);
    show(createRegions(counts));
    progress.value = 0;
    counted.textContent = `0 of ${counts.length}`;
    const weights = counts.map((each) => named(state.axes, each.map((count) => count / resolution)));
    return ["/sweep", { ...subjectOfSweep(state), weights, ...sampling(state) }];
  }

  /** From now on these are drawn. */
  function show(mine) {
    regions = mine;
    const drawn = topic(store.state);
    const certain = isCertain(store.state);
    const textAt = (now) => (certain && topic(now) === drawn ? mine.textAt(now.weights) : null);
    store.set({ map: { snapsTo: drawing.own ? null : mine.resolution, topic: drawn, textAt } }); // nobody asked for steps
  }

  function take(event) {
    if (event.type === "item") {
      regions.add(event.weights, event.text);
      progress.value = event.completed / event.total;
      counted.textContent = `${event.completed} of ${event.total}`;
    } else if (event.type === "region") takeRegion(event);
    else if (event.exact !== undefined) takeWhole(event);
    paintSoon();
  }

  /** One region of `/sweep/map`; with the first one that has points it is a grid after all. */
  function takeRegion({ polygon, points, text, share }) {
    if (points.length && regions.resolution === null) show(createRegions(compositions((drawing.own ? BY_ITSELF : BY_HAND).rather, 3)));
    for (const point of points) regions.place(point, text);
    if (!points.length) regions.add(polygon, text, share);
    counted.textContent = inWords(regions.describe().length);
  }

  /** The answer of `/sweep/map`. The polygons of one that went on were computed twice, so only these are sure to fit together. */
  function takeWhole({ exact, why_not: why, regions: found }) {
    whyNot = why;
    if (!exact) return;
    show(createPolygons());
    for (const { polygon, text, share } of found) regions.add(polygon, text, share);
  }

  function forget() {
    regions = null;
    store.set({ map: null });
    paint();
  }

  function paint() {
    lit = null;
    peek(null);
    hide.hidden = regions === null;
    progress.hidden = counted.hidden = !drawing.busy;
    const finer = drawing.own && whyNot !== null;
    draw.textContent = regions === null ? "Draw the map" : finer ? "Draw it finer" : "Redraw";
    if (regions === null) {
      cells.replaceChildren();
      numbers.replaceChildren();
      list.replaceChildren();
      return tell(store.state);
    }
    const { axes, objectives } = store.state;
    const found = regions.describe();
    const colour = (region) => mixColour(axes, region.centre, objectives, region.fade);
    const exact = regions.resolution === null;
    const spacing = exact ? null : geometry.side / regions.resolution;
    const taken = geometry.taken();
    cells.replaceChildren(...(exact ? polygonsOf(regions, geometry.place, colour) : cellsOf(regions, at, spacing, colour)));
    numbers.replaceChildren(...found.map((region, i) => number(region, i, spacing, taken)));
    tell(store.state);
    if (drawing.busy) return undefined;
    return list.replaceChildren(textList(
      found.map((region) => ({ ...region, colour: colour(region), take: () => steer(store, region.middle) })), look));
  }

  function tell(state) {
    if (regions === null) {
      const why = drawing.whyNot(state);
      told.textContent = why === null ? "" : `The map is drawn when you ask for it: ${why}.`;
    } else if (isStale(state)) told.textContent = "This map is of another prompt or other options.";
    else told.textContent = drawing.busy ? "" : summary(inWords(regions.describe().length));
  }

  function summary(texts) {
    if (regions.missing) return drawing.soFar(texts);
    if (regions.resolution === null) return `${texts}, with exact borders.`;
    return `${texts} on ${regions.size} points.${whyNot === null ? "" : ` Not exact: ${whyNot}.`}`;
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

  store.watch(["prompt", "turns", "system", "options", "draft", "map"], (state) => {
    const stale = isStale(state);
    layer.classList.toggle("stale", stale);
    list.hidden = stale; // texts of another prompt would only be in the way
    tell(state);
  });
  return { layer, controls, list, peek };
}

const inWords = (count) => `${count} ${count === 1 ? "text" : "texts"}`;
