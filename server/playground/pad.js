// The triangle: three objectives at its corners, the point in between, profiles as named points, the map beneath.

import { freshId, h, svg } from "./dom.js";
import { disc, placeLabels } from "./labels.js";
import { laneClass, laneColour } from "./lanes.js";
import { createMap } from "./map.js";
import { profileWeights, steer } from "./point.js";
import { createProfiles, HANDLE } from "./profiles.js";
import { topic } from "./request.js";
import { CORNERS, HEIGHT, nearestOnGrid, toPoint, toWeights } from "./simplex.js";

const SIDE = 340; // of the triangle, in units of the picture
const LEFT = 30;
const TOP = 36;
const WIDTH = SIDE + 2 * LEFT;
const TALL = TOP + SIDE * HEIGHT + 38;
const STEP = 0.02;
const YOURS = "your point";

const place = ({ x, y }) => ({ x: LEFT + x * SIDE, y: TOP + y * SIDE });
const triangle = CORNERS.map(place).map(({ x, y }) => `${x},${y}`).join(" ");
const frame = { left: 0, right: WIDTH, bottom: TALL - 22 };

export function createPad(store, actions) {
  const { axes, objectives } = store.state;
  const profiles = createProfiles(store, { place, frame });
  const map = createMap(store, actions, { place, side: SIDE, taken: profiles.taken });
  const picture = svg(
    "svg",
    { class: "pad-picture", viewBox: `0 0 ${WIDTH} ${TALL}`, "aria-hidden": "true", focusable: "false" },
    svg("defs", {}, gradients(axes, objectives), svg("clipPath", { id: "pad-clip" }, svg("polygon", { points: triangle }))),
    svg("polygon", { points: triangle, class: "pad-ground" }),
    axes.map((_, i) => svg("polygon", { points: triangle, class: "pad-colour", fill: `url(#pad-lane-${i})` })),
    map.layer,
    svg("polygon", { points: triangle, class: "pad-edge" }),
    doubt(store, profiles.taken),
    axes.map((name, i) => corner(name, i, objectives)),
    profiles.layer,
  );
  const help = h("p", { class: "hint pad-help", id: freshId("pad-help") }, "Drag the point, or use the arrow keys: up is more ",
    axes[0], ", left more ", axes[1], ", right more ", axes[2], ". Shift makes larger steps, 1 2 3 go to the corners.");
  const point = h("div", {
    class: "pad-point", role: "slider", tabindex: "0", "aria-label": "Point on the pad", "aria-orientation": "horizontal",
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-describedby": help.id, on: { keydown: (event) => byKey(event, store) },
  });
  const area = h("div", { class: "pad" }, picture, point);
  store.watch(["weights"], ({ weights }) => {
    const at = place(toPoint(weights));
    point.style.left = `${(100 * at.x) / WIDTH}%`;
    point.style.top = `${(100 * at.y) / TALL}%`;
    point.setAttribute("aria-valuenow", String(Math.round(100 * weights[0])));
    point.setAttribute("aria-valuetext", axes.map((name, i) => `${name} ${weights[i].toFixed(2)}`).join(", "));
  });
  dragging(area, picture, point, store, map);
  return { picture: h("div", { class: "pad-frame" }, area, help, map.controls), below: map.list };
}

/** The weights under the mouse; with a map of points that a person asked for, those of the cell, whose text is known. */
function under(event, picture, store) {
  const box = picture.getBoundingClientRect();
  const x = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / SIDE;
  const y = (((event.clientY - box.top) / box.height) * TALL - TOP) / SIDE;
  const weights = toWeights({ x, y });
  const { map } = store.state;
  if (map === null || map.snapsTo === null || map.topic !== topic(store.state)) return weights;
  return nearestOnGrid(weights, map.snapsTo).map((count) => count / map.snapsTo);
}

function dragging(area, picture, point, store, map) {
  let dragged = false;
  const follow = (event) => steer(store, under(event, picture, store));
  area.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragged = true;
    area.setPointerCapture(event.pointerId);
    event.preventDefault(); // no selection of text while dragging
    point.focus({ preventScroll: true });
    const near = event.target.closest("[data-profile]");
    if (near !== null) {
      const profile = store.state.profiles.find(({ name }) => name === near.dataset.profile);
      steer(store, profileWeights(profile, store.state.axes), profile.name);
    } else follow(event);
  });
  area.addEventListener("pointermove", (event) => {
    if (dragged) follow(event);
    map.peek(under(event, picture, store));
  });
  area.addEventListener("pointerleave", () => map.peek(null));
  for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => (dragged = false));
}

function byKey(event, store) {
  const { weights } = store.state;
  const step = event.shiftKey ? 5 * STEP : STEP;
  const moves = {
    ArrowUp: [step, -step / 2, -step / 2],
    ArrowDown: [-step, step / 2, step / 2],
    ArrowLeft: [0, step, -step],
    ArrowRight: [0, -step, step],
  };
  const corners = { 1: [1, 0, 0], 2: [0, 1, 0], 3: [0, 0, 1], Home: [1 / 3, 1 / 3, 1 / 3] };
  const move = moves[event.key];
  const to = corners[event.key] ?? (move && toWeights(toPoint(weights.map((w, i) => w + move[i]))));
  if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  steer(store, to);
}

/** `region` {outline, weights}: the point that choices speak for, and the corners of where it may lie; null for none. */
function doubt(store, taken) {
  const layer = svg("g", { class: "pad-doubt" });
  store.watch(["region", "weights"], ({ region, weights }) => {
    if (region === null || region.outline === null) return layer.replaceChildren();
    const corners = region.outline.map((corner) => place(toPoint(corner))).map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`);
    const { x, y } = place(toPoint(region.weights));
    const [name] = placeLabels([{ x, y, text: YOURS }], [disc(place(toPoint(weights)), HANDLE), ...taken()], frame);
    return layer.replaceChildren(
      svg("polygon", { points: corners.join(" "), class: "doubt-region" }),
      svg("path", { class: "doubt-point", d: `M${x - 9} ${y}H${x + 9}M${x} ${y - 9}V${y + 9}` }),
      svg("text", { x: name.x, y: name.y, "text-anchor": name.anchor, class: "doubt-name" }, YOURS));
  });
  return layer;
}

/** From each corner its colour, gone before it reaches the others: the middle stays light. */
function gradients(axes, objectives) {
  return axes.map((name, i) => {
    const { x, y } = place(CORNERS[i]);
    const stops = [[0, 1], [0.45, 0.52], [1, 0]].map(([offset, opacity]) => svg("stop", { offset: String(offset), "stop-opacity": String(opacity) }));
    for (const stop of stops) stop.style.setProperty("stop-color", laneColour(name, objectives));
    return svg("radialGradient", { id: `pad-lane-${i}`, cx: x, cy: y, r: SIDE * 0.82, gradientUnits: "userSpaceOnUse" }, stops);
  });
}

function corner(name, i, objectives) {
  const { x, y } = place(CORNERS[i]);
  const at = [
    { x, y: y - 16, "text-anchor": "middle" },
    { x: x - 22, y: y + 28, "text-anchor": "start" },
    { x: x + 22, y: y + 28, "text-anchor": "end" },
  ][i];
  const shown = name.length > 18 ? `${name.slice(0, 17)}…` : name;
  return svg("g", { class: laneClass(name, objectives) },
    svg("circle", { cx: x, cy: y, r: 6, class: "pad-corner" }), svg("text", { ...at, class: "pad-name" }, shown));
}
