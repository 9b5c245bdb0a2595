// The system prompt of a chat: the bundle's own, until a person writes another one for this page.

import { byId, h } from "./dom.js";
import { bundleSystem } from "./request.js";

const TYPING_MS = 700;

let scope = null;

/** May be called again for another bundle. */
export function createSystem(whole) {
  scope?.end();
  const store = (scope = whole.scope());
  const { chat } = store.state;
  const place = byId("system");
  place.hidden = chat === null;
  if (chat === null) return place.replaceChildren();
  const area = h("textarea", { id: "system-text", rows: "2", spellcheck: "true", autocomplete: "off",
    placeholder: "None: the model is told nothing before the client speaks." });
  const now = h("span", { class: "system-now" });
  const tag = h("span", { class: "tag" }, "changed");
  const back = h("button", { type: "button", on: { click: () => store.set({ system: bundleSystem(chat) }) } }, "Back to the bundle's own");
  let timer = null;
  const write = () => {
    clearTimeout(timer);
    store.set({ system: area.value });
  };
  area.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(write, TYPING_MS);
  });
  area.addEventListener("change", write);
  place.replaceChildren(h("summary", {}, h("span", { class: "speaker" }, "System", h("span", { class: "offscreen" }, " prompt")), now, tag),
    h("div", { class: "system-body" },
      h("label", { class: "offscreen", for: area.id }, "System prompt"), area,
      h("div", { class: "row" }, back, h("p", { class: "hint" }, "What the model is told about its part. It holds for every turn of this page, and for no other request to the server."))));
  store.watch(["system"], ({ system }) => {
    if (system !== area.value) area.value = system;
    now.textContent = system.trim() || "no system prompt";
    const changed = system !== bundleSystem(chat);
    tag.hidden = !changed;
    back.hidden = !changed;
  });
  return undefined;
}
