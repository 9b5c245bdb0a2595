// What is told to the server of a person's choice, where it keeps choices: weights, scores and hashes, never a text.

import { ask } from "./api.js";
import { byId, freshId, h } from "./dom.js";

const LABEL = "[A-Za-z0-9_.@\\-]{1,64}";

/** Whether choices are kept, and under which label; null where they are not. */
export const keptFor = ({ choices, user }) => (choices?.kept && user ? user : null);

/** A draft of `POST /drafts` as a choice holds it. */
export function shown({ centre, text_sha256, scores }, outcome) {
  const known = Object.fromEntries(Object.entries(scores).filter(([, score]) => score !== null));
  return { weights: centre, text_sha256, scores: known, outcome };
}

/** Tell the server, where it keeps choices; says in words what became of it. */
export async function keep(state, drafts, reason = null) {
  if (!state.choices.kept) return "Nothing was recorded: this server keeps no choices.";
  if (!state.user) return "Nothing was recorded: no label was given.";
  try {
    await ask("/choices", { body: { user: state.user, shown: drafts, ...(reason === null ? {} : { reason }) } });
  } catch (error) {
    return `Not recorded. ${error.message}`;
  }
  return `Recorded for ${state.user}: weights, scores and a hash, no text.`;
}

/** The label of who chooses, or one line that nothing is kept. */
export function createLabel(store) {
  const place = byId("choose-label");
  const hint = freshId("label-hint");
  const input = h("input", { id: "person", type: "text", autocomplete: "off", spellcheck: "false", pattern: LABEL, "aria-describedby": hint, on: {
    change: () => input.reportValidity() && store.set({ user: input.value.trim() }) } });
  store.watch(["choices"], ({ choices }) => {
    place.replaceChildren(...(choices?.kept
      ? [h("label", { for: input.id }, "Your label"), input,
          h("span", { class: "hint", id: hint }, "Letters, digits and _ . @ -, not your name. With it, the server keeps which drafts you take: weights, scores and a hash, no text.")]
      : [h("p", { class: "hint" }, "This server keeps no choices (choices_file is not set). What you choose stays in this page and is gone with it.")]));
  });
}
