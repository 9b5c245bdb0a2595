// Distinct texts as a list that keys reach: beside the map and beside the line. And how far their colours are apart.

import { h } from "./dom.js";
import { percent } from "./lanes.js";

const FADES = [0.28, 0.52, 0.72, 0.4, 0.62];

/** For every region a fade that none of its neighbours has, largest regions first; `neighbours`: index -> Set of them. */
export function fadesApart(sizes, neighbours) {
  const fades = sizes.map(() => null);
  const order = sizes.map((_, i) => i).sort((a, b) => sizes[b] - sizes[a]);
  for (const i of order) {
    const taken = new Set([...(neighbours[i] ?? [])].map((j) => fades[j]));
    fades[i] = FADES.find((fade) => !taken.has(fade)) ?? FADES[i % FADES.length];
  }
  return fades;
}

/**
 * The list of texts. `entries`: {text, share, where, colour, take()}; `onLook(index | null)` when one is hovered or
 * focused. It is one stop of the Tab key, however many there are; arrow keys go through it.
 */
export function textList(entries, onLook) {
  const go = (event, i) => {
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (buttons[to] === undefined) return;
    event.preventDefault();
    buttons[i].tabIndex = -1;
    buttons[to].tabIndex = 0;
    buttons[to].focus();
  };
  const buttons = entries.map(({ text, share, where, colour, take }, i) =>
    h("button", {
      type: "button", class: "region", tabindex: i === 0 ? "0" : "-1", on: {
        keydown: (event) => go(event, i),
        click: take, focus: () => onLook(i), blur: () => onLook(null), pointerenter: () => onLook(i), pointerleave: () => onLook(null),
      },
    },
      h("span", { class: "region-key", vars: { "--fill": colour } }, String(i + 1)),
      h("span", { class: "region-text" }, text || "(no text)"),
      h("span", { class: "region-share" }, where ?? percent(share))));
  return h("ol", { class: "regions" }, buttons.map((button) => h("li", {}, button)));
}
