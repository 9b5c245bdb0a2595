// The prompt, the examples, the sampling options and the colours: what a person sets before and beside the weights.

import { byId, h } from "./dom.js";

const TYPING_MS = 450; // after the last key, before a draft is asked for
const EXAMPLES = [
  // in the words that the demo bundle was taught
  ["nights", "I know I should wake up rested, but my mind won't stop at night."],
  ["money", "I know I should help my mom with money, but I lost all our savings in November."],
  ["drinking", "I can't stop drinking rum. I want to cut down on rum. Everyone says it will get better."],
];

export function createAsking(store, writer) {
  const prompt = byId("prompt");
  let timer = null;
  const now = () => {
    clearTimeout(timer);
    store.set({ prompt: prompt.value });
  };
  prompt.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(now, TYPING_MS);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("ask").requestSubmit();
    }
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    now();
    if (!prompt.value.trim()) return prompt.focus();
    return writer.write();
  });
  byId("stop").addEventListener("click", () => writer.stop());
  byId("examples").replaceChildren(h("span", {}, "Examples"), ...EXAMPLES.map(([name, text]) =>
    h("button", { type: "button", class: "chip", on: { click: () => { prompt.value = text; now(); } } }, name)));
  prompt.value = EXAMPLES[0][1];
  store.set({ prompt: prompt.value });
  store.watch(["draft"], ({ draft }) => {
    byId("stop").hidden = draft === null || !["waiting", "writing"].includes(draft.state);
  });
}

let scope = null;

/** The sampling options, within the limits of the server; may be called again when those change. */
export function createOptions(whole) {
  scope?.end();
  const store = (scope = whole.scope());
  const { options, limits } = store.state;
  const place = byId("sampling");
  const change = (name, value) => store.set({ options: { ...store.state.options, [name]: value } });
  const number = (name, label, attributes, whenEmpty) => {
    const input = h("input", { type: "number", id: `option-${name}`, ...attributes, on: {
      change: () => {
        if (!input.checkValidity()) return input.reportValidity();
        return change(name, input.value === "" ? whenEmpty : input.valueAsNumber);
      } } });
    if (options[name] !== null) input.value = String(options[name]);
    return { input, row: h("label", { class: "option", for: input.id }, h("span", {}, label), input) };
  };
  const most = String(limits.max_new_tokens);
  const temperature = number("temperature", "Temperature", { min: "0", max: "5", step: "0.05" }, 0);
  const tokens = number("maxTokens", "Most tokens", { min: "1", max: most, step: "1" }, Math.min(64, limits.max_new_tokens));
  const seed = number("seed", "Seed", { min: "0", max: String(Number.MAX_SAFE_INTEGER), step: "1", placeholder: "drawn anew" }, null);
  const keep = h("button", { type: "button", class: "quiet", hidden: true, on: { click: () => {
    seed.input.value = String(store.state.draft.answer.seed);
    change("seed", store.state.draft.answer.seed);
  } } }, "Keep this draft's seed");
  place.replaceChildren(h("summary", {}, "Sampling"),
    h("div", { class: "options" }, temperature.row, tokens.row, seed.row, keep),
    h("p", { class: "hint" }, "At temperature 0 the most likely token is always taken, and the seed makes no difference. Above it, the same seed gives the same text."));
  store.watch(["draft", "options"], ({ draft, options: { temperature: heat, seed: kept } }) => {
    keep.hidden = !(heat > 0 && kept === null && draft?.state === "done");
  });
}

export function createTheme() {
  const root = document.documentElement;
  const names = { auto: "Auto", light: "Light", dark: "Dark" };
  const buttons = Object.entries(names).map(([value, text]) => h("button", { type: "button", on: { click: () => choose(value) }, "data-value": value }, text));
  const choose = (value) => {
    root.dataset.theme = value;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  };
  byId("theme").replaceChildren(...buttons);
  choose("auto");
}
