// Light, dark, or as the system has it; not remembered, since the page stores nothing.

import { byId, h } from "./dom.js";

const NAMES = { auto: "Auto", light: "Light", dark: "Dark" };

export function createTheme() {
  const buttons = Object.entries(NAMES).map(([value, text]) =>
    h("button", { type: "button", on: { click: () => choose(value) }, "data-value": value }, text));
  const choose = (value) => {
    document.documentElement.dataset.theme = value;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  };
  byId("theme").replaceChildren(...buttons);
  choose("auto");
}
