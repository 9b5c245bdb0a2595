// Where the client's words are typed, and the examples: what a draft is asked for.

import { byId, h } from "./dom.js";
import { examplesFor } from "./examples.js";

const TYPING_MS = 450; // after the last key, before a draft is asked for

export function createAsking(store, writer) {
  const prompt = byId("prompt");
  let timer = null;
  const now = () => {
    clearTimeout(timer);
    store.set({ prompt: prompt.value });
  };
  prompt.addEventListener("input", () => {
    clearTimeout(timer);
    if (prompt.value.trim()) timer = setTimeout(now, TYPING_MS);
    else now(); // there is nothing to wait for: the draft of what stood there goes at once
  });
  onEnter(prompt, () => byId("ask").requestSubmit());
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    now();
    if (!prompt.value.trim()) return prompt.focus();
    return writer.write();
  });
  byId("stop").addEventListener("click", () => writer.stop());
  store.watch(["prompt"], ({ prompt: said }) => {
    if (said.trim() === prompt.value.trim()) return;
    clearTimeout(timer);
    prompt.value = said;
  });
  store.watch(["turns"], ({ turns }) => {
    prompt.placeholder = turns.length ? "What does the client say next?" : "What did the client say?";
  });
  store.watch(["draft"], ({ draft }) => {
    byId("stop").hidden = draft === null || !["waiting", "writing"].includes(draft.state);
  });
}

/** Enter does it; with Shift it makes a new line. */
export function onEnter(area, act) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    act();
  });
}

/** The examples that suit the bundle. Where nothing was typed yet, the first one is taken. */
export function createExamples(store) {
  const { chat, prompt, turns } = store.state;
  const examples = examplesFor(chat);
  const take = ({ said, turns: before }) => store.set({ prompt: said, turns: before });
  byId("examples").replaceChildren(h("span", {}, "Examples"), ...examples.map((example) =>
    h("button", { type: "button", class: "chip", on: { click: () => take(example) } }, example.name)));
  if (!prompt.trim() && !turns.length) take(examples[0]);
}
