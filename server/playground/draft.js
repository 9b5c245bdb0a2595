// The draft on the page: tokens tinted by the objective that tipped them, their tooltip, and the state in words.

import { byId, h } from "./dom.js";
import { laneClass, verdict } from "./lanes.js";
import { createTooltip } from "./tooltip.js";

const PRINTS = /[\p{L}\p{N}\p{P}\p{S}]/u;
const ENDED = { stop: "ended by itself", length: "cut at the most tokens allowed", cancelled: "cancelled" };
const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const STATES = {
  known: () => "",
  waiting: () => "",
  writing: () => "",
  stopped: () => "Stopped. What is above is not the whole text.",
  broken: ({ tokens }) => (tokens.length ? "The text above is not whole." : ""),
  taken: ({ edited }) => `Taken from the drafts, ${edited ? "edited" : "as written"}.`,
  done: ({ answer, repeats }) => {
    const { completion_tokens: count } = answer.usage;
    const facts = `${count} ${count === 1 ? "token" : "tokens"}, ${ENDED[answer.finish_reason]}, ${duration(answer.timing.total_ms)}.`;
    return repeats ? `The same text as at the weights before. ${facts}` : facts;
  },
};

export function createDraft(store) {
  const place = byId("draft");
  const text = h("div", { class: "draft", role: "group", tabindex: "0", hidden: true, "aria-label": "Draft, token by token" });
  const ahead = h("span", { class: "ahead" }); // of a text that the map knows: what has not been written again yet
  const empty = h("p", { class: "hint empty" });
  const refusal = h("div", { class: "refusal", role: "alert", hidden: true });
  const loading = h("div", { class: "loading", "aria-hidden": "true" }, h("div", { class: "skeleton" }), h("div", { class: "skeleton short" }));
  const hint = h("p", { class: "hint", hidden: true }, "Point at a word, or go through them with the arrow keys, for the exact parts.");
  place.replaceChildren(empty, refusal, loading, text, hint);
  const tooltip = createTooltip(place);
  let shown = null; // the draft whose tokens stand there
  let spans = [];
  let active = -1;

  store.watch(["draft", "notice", "turns", "model", "prompt"], ({ draft, notice, turns, model, prompt }) => {
    const nothing = model !== null && !prompt.trim();
    empty.hidden = !nothing;
    empty.textContent = turns.length
      ? "Type what the client says next, and the next reply is drafted here."
      : "Type what the client said, or take an example. The draft appears here, each word marked with the objective that tipped it.";
    if (draft === null) {
      shown = null;
      clear();
      text.hidden = true;
    }
    refuse(notice);
    loading.hidden = nothing || notice !== null || spans.length > 0 || draft?.state === "broken" || Boolean(draft?.text);
    hint.hidden = draft?.state !== "done" || !draft.tokens.length;
    byId("status").textContent = draft === null ? "" : STATES[draft.state](draft);
    if (draft !== null) write(draft);
  });

  function write(draft) {
    const before = draft.expected;
    // What was there stays until the first token comes, or the page would flicker.
    text.classList.toggle("old", !draft.tokens.length && before === null);
    text.setAttribute("aria-busy", String(draft.state === "writing" || draft.state === "known"));
    if (!draft.tokens.length && before === null) return;
    text.hidden = false;
    if (shown?.tokens !== draft.tokens) clear();
    shown = draft;
    for (const token of draft.tokens.slice(spans.length)) add(token);
    if (spans.length) beListbox(true);
    const written = ["known", "taken"].includes(draft.state) ? "" : draft.text;
    ahead.textContent = draft.state !== "done" && before?.startsWith(written) ? before.slice(written.length) : "";
    if (ahead.textContent) text.append(ahead);
    else ahead.remove();
  }

  /** The operator's own text in place of a draft, or nothing. */
  function refuse(notice) {
    refusal.hidden = notice === null;
    refusal.replaceChildren(...(notice === null ? [] : [
      ...notice.split(/\n+/).map((line) => h("p", {}, line)),
      h("p", {}, h("a", { href: "playground/clinical-use.html", target: "_blank", rel: "noopener" }, "Before clinical use")),
    ]));
  }

  function clear() {
    tooltip.hide();
    text.replaceChildren();
    beListbox(false);
    text.removeAttribute("aria-activedescendant");
    spans = [];
    active = -1;
  }

  /** Only what has options may be a listbox. */
  function beListbox(on) {
    text.setAttribute("role", on ? "listbox" : "group");
    if (on) text.setAttribute("aria-orientation", "horizontal");
    else text.removeAttribute("aria-orientation");
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
