// The panel of weights: a pad for three objectives, a line for two, sliders for any other number; profiles; numbers.

import { h, byId } from "./dom.js";
import { laneClass } from "./lanes.js";
import { createLine } from "./line.js";
import { createPad } from "./pad.js";
import { profileWeights, steer } from "./point.js";
import { relink } from "./simplex.js";

let scope = null;

/** Build the panel for the axes in the store; what was built before for others is let go. */
export function createSteering(whole, actions) {
  scope?.end();
  const store = (scope = whole.scope());
  const { axes } = store.state;
  const place = byId("steering");
  const { picture = null, below = null } = { 2: createLine, 3: createPad }[axes.length]?.(store, actions) ?? {};
  const parts = [picture, below, profileButtons(store), numbers(store, picture === null)];
  place.replaceChildren(...parts.filter((part) => part !== null));
}

function profileButtons(store) {
  const { profiles, axes } = store.state;
  const known = profiles.map((profile) => [profile, profileWeights(profile, axes)]).filter(([, at]) => at !== null);
  if (!known.length) return null;
  const buttons = known.map(([profile, at]) =>
    h("button", { type: "button", class: "chip", on: { click: () => steer(store, at, profile.name) } }, profile.name),
  );
  store.watch(["profile"], ({ profile }) => {
    known.forEach(([each], i) => buttons[i].setAttribute("aria-pressed", String(each.name === profile)));
  });
  return h("div", { class: "profiles", role: "group", "aria-label": "Profiles" }, h("span", {}, "Profiles"), buttons);
}

/** One row per axis: name, exact number, and a slider where there is no picture to drag on. All stay linked to sum 1. */
function numbers(store, withSliders) {
  const { axes, objectives, descriptions } = store.state;
  const rows = axes.map((name, i) => {
    const change = (event) => {
      const value = event.target.valueAsNumber;
      if (Number.isFinite(value)) steer(store, relink(store.state.weights, i, value));
    };
    const number = h("input", {
      type: "number", min: "0", max: "1", step: "0.01", inputmode: "decimal", "aria-label": `Weight of ${name}`,
      on: { change },
    });
    const slider = withSliders
      ? h("input", { type: "range", min: "0", max: "1", step: "0.01", "aria-label": `${name}, slider`, on: { input: change } })
      : null;
    const label = h("span", { class: "lane-name" }, h("span", { class: "swatch" }), name);
    const about = descriptions[name] ? h("span", { class: "about" }, descriptions[name]) : null;
    const row = h("li", { class: `weight ${laneClass(name, objectives)}` }, label, slider, number, about);
    return { row, number, slider };
  });
  store.watch(["weights"], ({ weights }) => {
    rows.forEach(({ row, number, slider }, i) => {
      number.value = String(weights[i]);
      if (slider !== null) slider.value = String(weights[i]);
      row.style.setProperty("--part", String(weights[i]));
    });
  });
  return h("ul", { class: withSliders ? "weights with-sliders" : "weights" }, rows.map(({ row }) => row));
}
