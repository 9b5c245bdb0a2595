// The draft on the page: tokens tinted by the objective that tipped them, their tooltip, and the state in words.

import { byId, h } from "./dom.js";
import { laneClass, verdict } from "./lanes.js";
import { createTooltip } from "./tooltip.js";

const PRINTS = /[\p{L}\p{N}\p{P}\p{S}]/u;
const STATES = {
  waiting: () => "",
  writing: () => "",
  stopped: () => "Stopped. What is above is not the whole text.",
  broken: ({ tokens }) => (tokens.length ? "The text above is not whole." : ""),
  done: ({ answer }) => {
    const { completion_tokens: count } = answer.usage;
    const ended = { stop: "ended by itself", length: "cut at the most tokens allowed", cancelled: "cancelled" };
    return `${count} ${count === 1 ? "token" : "tokens"}, ${ended[answer.finish_reason]}, ${Math.round(answer.timing.total_ms)} ms.`;
  },
};

export function createDraft(store) {
  const place = byId("draft");
  const text = h("div", {
    class: "draft", role: "listbox", tabindex: "0", hidden: true, "aria-label": "Draft, token by token", "aria-orientation": "horizontal",
  });
  const empty = h("p", { class: "hint" }, "The draft appears here. Each word is marked with the objective that tipped it.");
  const hint = h("p", { class: "hint", hidden: true }, "Point at a word, or go through them with the arrow keys, for the exact parts.");
  place.replaceChildren(empty, text, hint);
  const tooltip = createTooltip(place);
  let shown = null; // the draft whose tokens stand there
  let spans = [];
  let active = -1;

  store.watch(["draft"], ({ draft }) => {
    if (draft === null) return;
    empty.hidden = draft.tokens.length > 0 || spans.length > 0;
    text.classList.toggle("stale", !draft.tokens.length);
    text.setAttribute("aria-busy", String(draft.state === "writing"));
    byId("status").textContent = STATES[draft.state](draft);
    if (!draft.tokens.length) return; // what was there stays until the first token comes, or the page would flicker
    text.hidden = false;
    if (shown?.tokens !== draft.tokens) clear();
    shown = draft;
    for (const token of draft.tokens.slice(spans.length)) add(token);
    hint.hidden = draft.state !== "done" || !spans.length;
  });

  function clear() {
    tooltip.hide();
    text.replaceChildren();
    spans = [];
    active = -1;
  }

  function add(token) {
    const { objectives } = store.state;
    const { lane, share } = verdict(token.attribution);
    const [, space, word] = token.text.match(/^(\s*)([^]*)$/u);
    const ending = !token.text;
    const index = spans.length;
    const span = h("span", {
      class: `token ${lane === null ? "" : laneClass(lane, objectives)} ${ending ? "ending" : ""}`, role: "option", id: `token-${index}`,
      "aria-selected": "false", "aria-label": PRINTS.test(word) ? null : "no text to read", vars: { "--share": share.toFixed(3) },
      on: { pointerenter: () => tell(index), pointerleave: () => tooltip.hide(), click: () => tell(index) },
    }, word); // what stands for a token without text is drawn by the style, so that nobody copies it
    text.append(space, span);
    spans.push(span);
  }

  function tell(index) {
    tooltip.show(spans[index], shown.tokens[index], store.state.objectives);
  }

  function choose(index) {
    spans[active]?.setAttribute("aria-selected", "false");
    active = Math.min(spans.length - 1, Math.max(0, index));
    const span = spans[active];
    if (!span) return;
    span.setAttribute("aria-selected", "true");
    span.setAttribute("aria-describedby", tooltip.id);
    text.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    tell(active);
  }

  const moves = { ArrowRight: () => active + 1, ArrowDown: () => active + 1, ArrowLeft: () => active - 1,
    ArrowUp: () => active - 1, Home: () => 0, End: () => spans.length - 1 };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tooltip.hide();
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(moves[event.key]());
  });
  text.addEventListener("focus", () => {
    if (spans.length && text.matches(":focus-visible")) choose(Math.max(0, active));
  });
  text.addEventListener("blur", () => tooltip.hide());
  document.addEventListener("keydown", (event) => event.key === "Escape" && tooltip.hide());
}
