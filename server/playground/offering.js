// A few drafts to choose from: take one, edit one, or say no and why.

import { onEnter } from "./asking.js";
import { card, MARKED, NO_PROMPT, scoreList, UNDRAFTED, weightList } from "./cards.js";
import { h } from "./dom.js";
import { keep, shown } from "./keeping.js";
import { sampling, subjectOf, topic } from "./request.js";
import { createRun } from "./sweeping.js";

const COUNT = 3;
const LOOKED_AT = 8; // weights that the server looks at
const DRAWN = 2; // texts of each of them beside the most likely one, as the server has it
const SAID = { taken: "taken", edited: "edited and taken", rejected: "rejected" };
const inWords = (reason) => reason.replaceAll("_", " ");

/** `accept({said, text, draft})` puts a text where a reply goes. */
export function createOffering(store, actions, accept) {
  const told = h("p", { class: "hint", role: "status" });
  const row = h("div", { class: "cards" });
  const element = h("div", {}, told, row);
  let offer = null; // {said, topic, asked (before), drafts, outcomes}
  let open = null; // {index, what}: the card that is being edited or rejected
  const run = createRun(
    (event) => {
      actions.fine();
      if (event.type === "text") told.textContent = `Writing: ${event.completed} of ${event.total} texts.`;
      else {
        offer = { ...offer, drafts: event.drafts, outcomes: event.drafts.map(() => "left") };
        const by = event.ranked_by === "scores" ? "by their scores" : "by likelihood, since nothing is scored";
        told.textContent = `${event.drafts.length} of ${event.distinct} different texts, best first ${by}. ${MARKED}`;
        paint();
      }
    },
    (error) => {
      if (error === null) return;
      told.textContent = error.kind === "undrafted" ? UNDRAFTED : "";
      actions.trouble(error, () => start());
    },
  );

  /** `again`: other texts than those that are shown are drawn. */
  function start(again = false) {
    const { state } = store;
    if (!state.prompt.trim()) {
      if (offer === null || !offer.drafts.length) told.textContent = NO_PROMPT;
      return actions.needPrompt();
    }
    const asked = again && offer?.topic === topic(state) ? offer.asked + 1 : 0;
    offer = { said: state.prompt.trim(), topic: topic(state), asked, drafts: [], outcomes: [] };
    open = null;
    paint();
    told.textContent = "Looking at many weights.";
    const most = Math.floor(state.limits.max_sweep / (1 + DRAWN));
    const wide = { count: COUNT, candidates: Math.max(1, Math.min(LOOKED_AT, most)), receipt: false };
    return run.start("/drafts", { ...subjectOf(state), seed: asked * DRAWN, ...sampling(state), ...wide });
  }

  async function settle(index, outcome, { reason = null, text = offer.drafts[index].text } = {}) {
    const { drafts, said } = offer;
    offer.outcomes[index] = outcome;
    open = null;
    paint();
    const one = outcome === "rejected"; // at once, with its reason; what is taken is kept with all it was taken from
    const list = one ? [shown(drafts[index], outcome)] : drafts.map((draft, i) => shown(draft, offer.outcomes[i]));
    const mine = offer;
    if (!one) accept({ said, text, draft: drafts[index] });
    const kept = await keep(store.state, list, reason);
    if (mine === offer) told.textContent = `Draft ${index + 1}: ${SAID[outcome]}. ${kept}`;
  }

  function paint() {
    if (offer === null) return row.replaceChildren();
    const { objectives } = store.state;
    const { drafts, outcomes } = offer;
    row.replaceChildren(...drafts.map((draft, i) => {
      const others = drafts.filter((other) => other !== draft).map(({ text }) => text);
      return card({ title: `Draft ${i + 1}`, tag: SAID[outcomes[i]], text: draft.text, others, className: outcomes[i] },
        scoreList(draft, objectives), weightList(draft.weights, objectives), tools(draft, i));
    }));
    stale(store.state);
    return undefined;
  }

  function tools(draft, i) {
    const { outcomes } = offer;
    const gone = outcomes.some((each) => ["taken", "edited"].includes(each)) || outcomes[i] === "rejected";
    if (gone) return null;
    if (open?.index === i) return open.what === "edit" ? editor(draft, i) : reasons(i);
    const button = (name, act, className = "") => h("button", { type: "button", class: className, "aria-label": `${name} draft ${i + 1}`, on: { click: act } }, name);
    return h("div", { class: "row card-tools" },
      button("Take", () => settle(i, "taken"), "strong"), button("Edit", () => show(i, "edit")), button("Reject", () => show(i, "reject")));
  }

  function editor(draft, i) {
    const area = h("textarea", { rows: "4", value: draft.text, "aria-label": `Text of draft ${i + 1}` });
    const save = () => {
      const text = area.value.trim();
      if (!text) return area.focus();
      return settle(i, text === draft.text ? "taken" : "edited", { text });
    };
    onEnter(area, save);
    return h("div", { class: "card-edit" }, area, h("div", { class: "row" },
      h("button", { type: "button", class: "strong", on: { click: save } }, "Save edit"),
      h("button", { type: "button", on: { click: () => show(null) } }, "Cancel")));
  }

  function reasons(i) {
    const select = h("select", { "aria-label": `Why not draft ${i + 1}` },
      h("option", { value: "" }, "no reason"), store.state.choices.reasons.map((each) => h("option", { value: each }, inWords(each))));
    return h("div", { class: "row card-tools" }, h("span", { class: "hint" }, "It should be"), select,
      h("button", { type: "button", class: "strong", on: { click: () => settle(i, "rejected", { reason: select.value || null }) } }, "Reject it"),
      h("button", { type: "button", on: { click: () => show(null) } }, "Cancel"));
  }

  function show(index, what) {
    const before = open?.index ?? index;
    open = index === null ? null : { index, what };
    paint();
    const mine = row.children[before];
    (mine?.querySelector("textarea, select") ?? mine?.querySelector("button"))?.focus();
  }

  /** Drafts of another prompt may be read, but not taken. */
  function stale(state) {
    const old = offer !== null && offer.topic !== topic(state);
    row.classList.toggle("stale", old);
    for (const each of row.querySelectorAll(".card-tools button, .card-edit button")) each.disabled = old;
    if (old && offer.outcomes.includes("left") && !offer.outcomes.some((each) => ["taken", "edited"].includes(each)) && !run.busy) {
      told.textContent = "These drafts are of another prompt or other options.";
    }
  }

  store.watch(["prompt", "turns", "system", "options"], stale);
  return { element, start, stop: () => run.stop() };
}
