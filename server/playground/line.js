// Two objectives: a slider between them, and every text on the way with the exact places where it changes.

import { freshId, h, oncePerFrame } from "./dom.js";
import { createDrawing, isStale } from "./drawing.js";
import { laneClass, mixColour } from "./lanes.js";
import { steer } from "./point.js";
import { fadesApart, textList } from "./regions.js";
import { isPlain, subjectOf, topic } from "./request.js";

const ROUNDED = 1e-4; // weights are sent with four decimals

export function createLine(store, actions) {
  const { axes, objectives } = store.state;
  const slider = h("input", { type: "range", min: "0", max: "1", step: "0.001", "aria-label": `From ${axes[0]} to ${axes[1]}`,
    on: { input: (event) => go(event.target.valueAsNumber) } });
  const strip = h("div", { class: "strip", "aria-hidden": "true" });
  const draw = h("button", { type: "button", on: { click: () => drawing.start() } }, "Find every text");
  const hide = h("button", { type: "button", hidden: true, on: { click: () => drawing.hide() } }, "Hide them");
  const told = h("p", { class: "hint", role: "status" });
  const list = h("div", { id: freshId("line-texts") });
  let intervals = null;
  const paintSoon = oncePerFrame(() => paint());
  const isWhole = () => Math.abs(intervals.reduce((sum, { start: from, end }) => sum + end - from, 0) - 1) < 1e-6;
  const drawing = createDrawing(store, actions, {
    request, take, paint, forget, isWhole, isEmpty: () => intervals.length === 0, isExact: () => true,
  });
  const go = (t) => steer(store, [1 - t, t]);

  function request(state) {
    intervals = [];
    const drawn = topic(state);
    store.set({ map: { topic: drawn, textAt: (now) => (topic(now) === drawn ? known(now.weights[1]) : null) } });
    const ends = { from: { [axes[0]]: 1 }, to: { [axes[1]]: 1 } };
    return ["/sweep/line", { ...subjectOf(state), ...ends, max_new_tokens: state.options.max_new_tokens }];
  }

  function take(event) {
    if (event.type === "interval") intervals.push(event);
    else intervals = event.intervals;
    paintSoon();
  }

  /** The text at t, where it is known and no border is so near that rounding decides. */
  function known(t) {
    const holds = ({ start: from, end }) => (from === 0 || from + ROUNDED < t) && (end === 1 || t < end - ROUNDED);
    return intervals?.find(holds)?.text ?? null;
  }

  function forget() {
    intervals = null;
    store.set({ map: null });
    paint();
  }

  function paint() {
    hide.hidden = intervals === null;
    draw.textContent = intervals === null ? "Find every text" : "Find them anew";
    if (intervals === null) {
      strip.replaceChildren();
      list.replaceChildren();
      return tell(store.state);
    }
    const sorted = [...intervals].sort((a, b) => a.start - b.start);
    const sizes = sorted.map(({ start: from, end }) => end - from);
    const fades = fadesApart(sizes, sorted.map((_, i) => new Set([i - 1, i + 1])));
    const entries = sorted.map(({ start: from, end, text }, i) => {
      const middle = (from + end) / 2;
      const colour = mixColour(axes, [1 - middle, middle], objectives, fades[i]);
      return { text, colour, from, end, where: `${from.toFixed(4)} – ${end.toFixed(4)}`, take: () => go(middle) };
    });
    const pieces = entries.map(({ colour, from, end }, i) => h("div", {
      class: "piece", vars: { "--fill": colour, "--from": String(from), "--wide": String(end - from) },
      on: { click: (event) => go(place(event)), pointerenter: () => look(i), pointerleave: () => look(null) },
    }));
    strip.replaceChildren(...pieces);
    tell(store.state);
    if (drawing.busy) return undefined;
    return list.replaceChildren(textList(entries, (i) => strip.querySelectorAll(".piece").forEach((each, j) => each.classList.toggle("lit", i === j))));
  }

  function tell(state) {
    draw.disabled = !isPlain(state);
    if (intervals === null) {
      const why = drawing.whyNot(state);
      if (draw.disabled) told.textContent = "The exact texts on the way exist at temperature 0 and without penalties.";
      else told.textContent = why === null ? "" : `The texts on the way are found when you ask for them: ${why}.`;
    } else if (isStale(state)) told.textContent = "These texts are of another prompt or other options.";
    else if (drawing.busy) told.textContent = "";
    else {
      const texts = `${intervals.length} ${intervals.length === 1 ? "text" : "texts"}`;
      told.textContent = isWhole() ? `${texts} between ${axes[0]} and ${axes[1]}, exactly.` : drawing.soFar(texts);
    }
  }

  const place = (event) => {
    const box = strip.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const look = (i) => list.querySelectorAll(".region").forEach((each, j) => each.classList.toggle("lit", i === j));

  store.watch(["weights"], ({ weights }) => {
    slider.value = String(weights[1]);
    slider.setAttribute("aria-valuetext", `${axes[0]} ${weights[0].toFixed(3)}, ${axes[1]} ${weights[1].toFixed(3)}`);
  });
  store.watch(["prompt", "turns", "system", "options", "draft", "map"], (state) => {
    const stale = isStale(state);
    strip.classList.toggle("stale", stale);
    list.hidden = stale; // texts of another prompt would only be in the way
    tell(state);
  });
  const ends = axes.map((name) => h("span", { class: `lane-name ${laneClass(name, objectives)}` }, h("span", { class: "swatch" }), name));
  return {
    picture: h("div", { class: "line" }, h("div", { class: "line-ends" }, ends), slider, strip, h("div", { class: "row" }, draw, hide), told),
    below: list,
  };
}
