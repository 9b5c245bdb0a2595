// Each objective alone, beside the mix: what the point is between. The mix changes while the point is dragged.

import { card, NO_PROMPT, UNDRAFTED, weightList } from "./cards.js";
import { h, oncePerFrame } from "./dom.js";
import { named, sampling, subjectOfSweep, topic } from "./request.js";
import { createRun } from "./sweeping.js";

export function createCorners(store, actions) {
  const told = h("p", { class: "hint", role: "status" });
  const row = h("div", { class: "cards by-two" });
  const element = h("div", {}, told, row);
  let shown = false;
  let known = null; // the topic of `texts`
  let texts = new Map(); // axis -> text
  let mix = ""; // what was last written of it
  const paintSoon = oncePerFrame(() => paint());
  const run = createRun(
    (event) => {
      actions.fine();
      if (event.type !== "item") return;
      texts.set(store.state.axes[event.weights], event.text);
      paintSoon();
    },
    (error) => error !== null && actions.trouble(error, start), // the watch below says it where nothing is drafted
  );

  function start() {
    const { state } = store;
    shown = true;
    if (!state.prompt.trim()) {
      say(NO_PROMPT);
      return actions.needPrompt();
    }
    if (state.notice !== null) return say(UNDRAFTED);
    known = topic(state);
    texts = new Map();
    mix = state.draft?.topic === known ? state.draft.text : "";
    paint();
    return run.start("/sweep", { ...subjectOfSweep(state), weights: state.axes.map((name) => ({ [name]: 1 })), ...sampling(state) });
  }

  function stop() {
    shown = false;
    run.stop();
  }

  /** In place of texts. */
  function say(why) {
    run.stop();
    known = null;
    told.textContent = why;
    row.replaceChildren();
  }

  function paint() {
    if (known === null) return;
    const { axes, weights, objectives } = store.state;
    const all = axes.filter((name) => texts.has(name)).map((name) => texts.get(name));
    const same = axes.filter((name) => mix && texts.get(name) === mix);
    told.textContent = same.length
      ? `The mix has the same text as ${same.join(" and ")} alone.`
      : "Drag the point and the mix follows. Marked: in the mix, words that no objective alone has there; beside it, words that the mix lacks.";
    row.replaceChildren(
      card({ title: "The mix", tag: "at the point", text: mix || "…", others: all, className: "mix" }, weightList(named(axes, weights), objectives)),
      ...axes.map((name) => card({ title: name, tag: "alone", text: texts.get(name) ?? "…", others: texts.has(name) && mix ? [mix] : [] },
        weightList({ [name]: 1 }, objectives))));
  }

  store.watch(["draft", "notice", "weights", "axes"], (state) => {
    const { draft, notice, prompt } = state;
    if (!shown) return;
    if (notice !== null || !prompt.trim()) return say(notice === null ? NO_PROMPT : UNDRAFTED);
    if (draft === null) return;
    if (draft.topic !== known) {
      if (draft.state === "done") start(); // once the new draft is there, so that nobody waits for the corners
      return;
    }
    if (draft.text) mix = draft.text;
    paintSoon();
  });
  return { element, start, stop };
}
