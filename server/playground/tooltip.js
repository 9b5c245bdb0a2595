// The exact parts of one token's margin, beside the token.

import { freshId, h } from "./dom.js";
import { laneClass, signed, verdict } from "./lanes.js";

/** One tooltip inside `place`, which it is positioned in. */
export function createTooltip(place) {
  const box = h("div", { class: "tooltip", role: "tooltip", id: freshId("parts"), hidden: true });
  place.classList.add("has-tooltip");
  place.append(box);

  function show(anchor, token, objectives) {
    const { parts, margin, lane } = verdict(token.attribution);
    const most = Math.max(...parts.map(([, part]) => Math.abs(part)), 1e-9);
    const rows = parts.map(([name, part]) =>
      h("tr", { class: laneClass(name, objectives) },
        h("th", { scope: "row" }, h("span", { class: "swatch" }), name),
        h("td", { class: "number" }, signed(part)),
        h("td", {}, h("span", { class: part < 0 ? "part against" : "part", vars: { "--size": String(Math.abs(part) / most) } }))));
    const probability = token.logprob === null ? "" : ` · ${(100 * Math.exp(token.logprob)).toFixed(1)} % likely`;
    box.replaceChildren(
      h("p", { class: "tooltip-token" }, token.text.trim() ? `“${token.text.trim()}”` : "no text (end, or half a letter)", probability),
      h("table", {}, h("tbody", {}, rows),
        h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "margin"), h("td", { class: "number" }, signed(margin)), h("td", {})))),
      h("p", { class: "tooltip-said" }, said(lane, margin)));
    box.hidden = false;
    const [at, frame] = [anchor.getClientRects()[0] ?? anchor.getBoundingClientRect(), place.getBoundingClientRect()];
    const left = Math.min(Math.max(0, at.left - frame.left), Math.max(0, frame.width - box.offsetWidth));
    box.style.left = `${left}px`;
    box.style.top = `${at.bottom - frame.top + 8}px`;
  }

  const said = (lane, margin) => {
    if (lane === null) return "No objective spoke for it over the next likely token.";
    if (margin < 0) return `Drawn by chance: another token was likelier. ${lane} spoke for it most.`;
    return `Tipped by ${lane}, over the next likely token.`;
  };

  return { id: box.id, show, hide: () => (box.hidden = true) };
}
