// Pinned drafts side by side; one is the reference, and in the others the words that differ from it are marked.

import { copyButton, download } from "./copying.js";
import { diff } from "./diff.js";
import { byId, h } from "./dom.js";
import { toJson, toMarkdown } from "./exports.js";
import { laneClass, percent } from "./lanes.js";
import { messagesOf } from "./request.js";

const MARKS = { same: "span", gone: "del", new: "ins" };

export function createCompare(store) {
  const place = byId("pins");
  store.watch(["pins", "reference"], ({ pins, reference, objectives }) => {
    byId("compare").hidden = pins.length === 0;
    const base = pins.find(({ id }) => id === reference) ?? pins[0];
    place.replaceChildren(
      ...(pins.length > 1
        ? [h("p", { class: "hint" }, "Words that only the reference has are ", h("del", {}, "struck out"), ", words that it lacks are ", h("ins", {}, "underlined"), ".")]
        : []),
      h("div", { class: "pins" }, pins.map((pin, i) => card(pin, i, base, objectives))),
      h("div", { class: "row" },
        h("button", { type: "button", on: { click: () => save(pins, "json") } }, "Export all as JSON"),
        h("button", { type: "button", on: { click: () => save(pins, "md") } }, "Export all as Markdown"),
        h("button", { type: "button", class: "quiet", on: { click: () => store.set({ pins: [], reference: null }) } }, "Unpin all")));
  });

  function card(pin, i, base, objectives) {
    const { draft } = pin;
    const isBase = pin === base;
    const runs = isBase ? [{ kind: "same", text: draft.text }] : diff(base.draft.text, draft.text);
    const weights = Object.entries(draft.answer.weights).filter(([, weight]) => weight > 0);
    return h("article", { class: "pin", "aria-label": `Draft ${i + 1}` },
      h("div", { class: "panel-head" }, h("h3", {}, `Draft ${i + 1}`), isBase ? h("span", { class: "tag" }, "reference") : null),
      ...before(draft),
      h("p", { class: "pin-prompt" }, draft.said),
      h("p", { class: "pin-text" }, runs.flatMap(marked)),
      h("ul", { class: "pin-weights" }, weights.map(([name, weight]) =>
        h("li", { class: laneClass(name, objectives) }, h("span", { class: "swatch" }), `${name} ${percent(weight)}`))),
      h("div", { class: "row" },
        isBase ? null : h("button", { type: "button", class: "quiet", on: { click: () => store.set({ reference: pin.id }) } }, "Make it the reference"),
        h("button", { type: "button", class: "quiet", on: { click: () => unpin(pin) } }, "Unpin")));
  }

  const unpin = (pin) => store.set({ pins: store.state.pins.filter((each) => each !== pin) });
  const save = (pins, kind) => saveDrafts(pins.map(({ draft }) => draft), kind, store.state);
}

/** How much of a conversation a draft knew, where there was one. */
function before({ request }) {
  const count = messagesOf(request).filter(({ role }) => role !== "system").length - 1;
  return count ? [h("p", { class: "hint" }, `after ${count} turns`)] : [];
}

/** A run with its mark; the space at its end stays outside, and a word never touches the next mark. */
function marked({ kind, text }) {
  const words = text.trimEnd();
  return [h(MARKS[kind], {}, words), text.slice(words.length) || (kind === "gone" ? " " : "")];
}

/** The buttons under the draft. */
export function createDraftActions(store) {
  let pinned = 0;
  const now = () => store.state.draft;
  const pin = () => {
    pinned += 1;
    store.set({ pins: [...store.state.pins, { id: pinned, draft: now() }] });
  };
  const buttons = [
    h("button", { type: "button", on: { click: pin } }, "Pin to compare"),
    copyButton(() => now().text, "Copy the text"),
    h("button", { type: "button", class: "quiet", on: { click: () => saveDrafts([now()], "json", store.state) } }, "Export JSON"),
    h("button", { type: "button", class: "quiet", on: { click: () => saveDrafts([now()], "md", store.state) } }, "Export Markdown"),
  ];
  byId("draft-actions").replaceChildren(...buttons);
  const [, copy] = buttons;
  store.watch(["draft"], ({ draft }) => buttons.forEach((button) => {
    button.disabled = draft?.state !== "done" && !(button === copy && draft?.state === "taken");
  }));
}

function saveDrafts(drafts, kind, facts) {
  const name = `emorl-draft${drafts.length > 1 ? "s" : ""}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.${kind}`;
  if (kind === "json") download(name, "application/json", toJson(drafts, facts));
  else download(name, "text/markdown", toMarkdown(drafts, facts));
}
