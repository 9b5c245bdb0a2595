// The sampling options: how tokens are chosen, and what keeps a text from repeating itself.

import { byId, h } from "./dom.js";
import { NEUTRAL } from "./request.js";

const MAX_SEED = String(Number.MAX_SAFE_INTEGER);
// Groups of [field, label, attributes]; the server's own bounds, tighter where more is of no use.
const CHOICE = [
  ["temperature", "Temperature", { min: "0", max: "5", step: "0.05" }],
  ["top_p", "Top p", { min: "0.01", max: "1", step: "0.01" }],
  ["top_k", "Top k", { min: "0", step: "1" }],
  ["min_p", "Min p", { min: "0", max: "1", step: "0.01" }],
  ["seed", "Seed", { min: "0", max: MAX_SEED, step: "1", placeholder: "drawn anew" }],
];
const REPEATS = [
  ["repetition_penalty", "Repetition penalty", { min: "0.1", max: "5", step: "0.05" }],
  ["presence_penalty", "Presence penalty", { min: "-2", max: "2", step: "0.1" }],
  ["frequency_penalty", "Frequency penalty", { min: "-2", max: "2", step: "0.1" }],
  ["no_repeat_ngram_size", "No repeat of", { min: "0", max: "64", step: "1" }],
];

let scope = null;

/** The options within the limits of the server; may be called again when those change. */
export function createSampling(whole) {
  scope?.end();
  const store = (scope = whole.scope());
  const most = String(store.state.limits.max_new_tokens);
  const fields = [["max_new_tokens", "Most tokens", { min: "1", max: most, step: "1" }], ...CHOICE, ...REPEATS];
  const rows = Object.fromEntries(fields.map((field) => [field[0], row(store, field)]));
  const keep = h("button", { type: "button", class: "quiet", hidden: true, on: { click: () => {
    rows.seed.input.value = String(store.state.draft.answer.seed);
    change(store, "seed", store.state.draft.answer.seed);
  } } }, "Keep this draft's seed");
  const changed = h("span", { class: "tag", hidden: true });
  byId("sampling").replaceChildren(h("summary", {}, "Sampling", changed),
    h("div", { class: "options" }, rows.max_new_tokens.row, CHOICE.map(([name]) => rows[name].row), keep),
    h("p", { class: "hint" }, "At temperature 0 the most likely token is always taken: top p, top k, min p and the seed make no difference. Above it, the same seed gives the same text."),
    h("div", { class: "options" }, REPEATS.map(([name]) => rows[name].row)),
    h("p", { class: "hint" }, "A repetition penalty above 1 makes tokens of the prompt and the text less likely, the other two only those of the text: once, or for each time. The last is the length in tokens of a run that may not come twice; 0 is off."));
  store.watch(["draft", "options"], ({ draft, options }) => {
    keep.hidden = !(options.temperature > 0 && options.seed === null && draft?.state === "done");
    const count = Object.entries(NEUTRAL).filter(([name, value]) => options[name] !== value).length;
    changed.hidden = count === 0;
    changed.textContent = `${count} changed`;
  });
}

function row(store, [name, label, attributes]) {
  const whenEmpty = NEUTRAL[name] ?? (name === "seed" ? null : store.state.options[name]);
  const input = h("input", { type: "number", id: `option-${name}`, ...attributes, on: { change: () => {
    if (!input.checkValidity()) return input.reportValidity();
    return change(store, name, input.value === "" ? whenEmpty : input.valueAsNumber);
  } } });
  const value = store.state.options[name];
  if (value !== null) input.value = String(value);
  return { input, row: h("label", { class: "option", for: input.id }, h("span", {}, label), input) };
}

const change = (store, name, value) => store.set({ options: { ...store.state.options, [name]: value } });
