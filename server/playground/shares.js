// The legend: for each objective what was asked of it and what it came to, as two bars and as numbers.

import { byId, h } from "./dom.js";
import { laneClass, percent, shares } from "./lanes.js";
import { named } from "./request.js";

export function createShares(store) {
  const place = byId("shares");
  store.watch(["draft"], ({ draft, objectives }) => {
    if (draft === null || draft.state === "taken") return place.replaceChildren();
    if (draft.state === "waiting" || !draft.tokens.length) return undefined; // those of the text that is still there
    const asked = named(draft.axes, draft.weights);
    const tipped = shares(draft.tokens);
    const lanes = [...new Set([...draft.axes, ...tipped.keys()])];
    return place.replaceChildren(
      h("div", { class: "bars", "aria-hidden": "true" },
        bar("asked", lanes, (lane) => asked[lane] ?? 0, objectives),
        bar("tipped", lanes, (lane) => tipped.get(lane) ?? 0, objectives)),
      h("ul", { class: "legend", "aria-label": "Objectives: weight asked, share of what tipped the tokens" },
        lanes.map((lane) => h("li", { class: laneClass(lane, objectives) },
          h("span", { class: "lane-name" }, h("span", { class: "swatch" }), lane),
          h("span", { class: "legend-number" }, `${percent(asked[lane] ?? 0)} asked, ${percent(tipped.get(lane) ?? 0)} tipped`)))),
      h("p", { class: "hint" }, h("strong", {}, "Asked"), " is the weight you set. ", h("strong", {}, "Tipped"),
        " is what it came to in this text: how much of what made each token win over the next likely one was this objective's doing. The two differ where objectives agree, or where one has nothing to say."));
  });
}

function bar(name, lanes, share, objectives) {
  const pieces = lanes.map((lane) => h("span", { class: `share ${laneClass(lane, objectives)}`, vars: { "--wide": String(share(lane)) } }));
  return h("div", { class: "bar" }, h("span", { class: "bar-name" }, name), h("span", { class: "bar-track" }, pieces));
}
