// The panel of drafts to choose from: three drafts, each objective alone beside the mix, or pairs that find one's weights.

import { createCorners } from "./corners.js";
import { byId, h } from "./dom.js";
import { createFinding } from "./finding.js";
import { createLabel } from "./keeping.js";
import { createOffering } from "./offering.js";

export function createChoose(store, actions, accept) {
  createLabel(store);
  const modes = [
    ["Three drafts", createOffering(store, actions, accept)],
    ["Each objective alone", createCorners(store, actions)],
    ["Find my weights", createFinding(store, actions)],
  ];
  let open = null;
  const buttons = modes.map(([name, mode]) => h("button", { type: "button", "aria-pressed": "false", on: { click: () => toggle(mode) } }, name));
  const again = h("button", { type: "button", class: "quiet", hidden: true, on: { click: () => open.start(true) } }, "Ask again");
  byId("choose-modes").replaceChildren(...buttons, again);

  function toggle(mode) {
    open?.stop();
    open = open === mode ? null : mode;
    modes.forEach(([, each], i) => buttons[i].setAttribute("aria-pressed", String(each === open)));
    again.hidden = open === null;
    byId("choose").replaceChildren(...(open === null ? [] : [open.element]));
    open?.start();
  }

  store.watch(["model"], ({ model }) => buttons.forEach((button) => (button.disabled = model === null)));
}
