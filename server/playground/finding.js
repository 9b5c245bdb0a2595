// "Find my weights": ten pairs of drafts, then the point that they speak for, with its region of doubt.

import { card } from "./cards.js";
import { copyButton } from "./copying.js";
import { h } from "./dom.js";
import { laneClass } from "./lanes.js";
import { createPairs } from "./pairs.js";
import { steer } from "./point.js";

const PAIRS = 10;

export function createFinding(store, actions) {
  const told = h("p", { class: "hint", role: "status" });
  const place = h("div", { class: "finding" });
  const element = h("div", {}, told, place);
  let round = 0; // what an earlier one still waits for is dropped
  let pairs = null;
  let done = 0;

  function start() {
    const { state } = store;
    if (state.objectives.length < 2) {
      told.textContent = "There are weights to find between two objectives or more; this bundle has one.";
      return place.replaceChildren();
    }
    store.set({ region: null });
    pairs = createPairs(state);
    done = 0;
    return next();
  }

  /** Do `work`, and with what it gives `then`, unless the person went elsewhere meanwhile. */
  async function step(says, work, then) {
    const mine = ++round;
    told.textContent = says;
    for (const each of place.querySelectorAll("button")) each.disabled = true;
    try {
      const found = await work();
      if (mine !== round) return;
      actions.fine();
      then(found);
    } catch (error) {
      if (mine === round) actions.trouble(error, () => step(says, work, then));
    }
  }

  const next = () => step(done ? "Choosing the next pair." : "Writing drafts to choose between.", () => pairs.next(), (pair) => (pair === null ? learn() : show(pair)));

  function show({ said, drafts }) {
    told.textContent = `Pair ${done + 1} of ${PAIRS}. Which of the two would you rather say? Words that differ are marked.`;
    const take = (taken) => step("Choosing the next pair.", () => pairs.choose(drafts, taken), () => {
      done += 1;
      if (done < PAIRS) next();
      else learn();
    });
    const cards = drafts.map((draft, i) => card({ title: "AB"[i], text: draft.text, others: [drafts[1 - i].text] },
      h("button", { type: "button", class: "strong", "aria-label": `Take ${"AB"[i]}`, on: { click: () => take(i) } }, "This one")));
    const hadFocus = place.contains(document.activeElement) || document.activeElement === document.body;
    place.replaceChildren(
      h("progress", { max: String(PAIRS), value: done, "aria-label": "Pairs" }),
      h("blockquote", { class: "asked" }, said),
      h("div", { class: "cards by-two" }, cards),
      h("div", { class: "row" },
        h("button", { type: "button", on: { click: () => take(null) } }, "Neither"),
        h("button", { type: "button", class: "quiet", disabled: done === 0, on: { click: () => learn() } }, "Enough: show what is known")));
    if (hadFocus && done) place.querySelector(".cards button").focus({ preventScroll: true });
  }

  const learn = () => step("Working out your point.", () => pairs.learn(), result);

  function result(found) {
    const { axes, objectives, choices } = store.state;
    const whose = found.user === null ? "" : ` of ${found.user}${found.choices > pairs.taken ? ", earlier ones among them" : ""}`;
    told.textContent = `Learned from ${found.choices} ${found.choices === 1 ? "choice" : "choices"}${whose}.`;
    const at = axes.map((name) => found.weights[name] ?? 0);
    store.set({ region: { outline: inAxes(found, axes), weights: at } });
    const rows = Object.entries(found.weights).map(([name, weight]) => h("li", { class: laneClass(name, objectives) },
      h("span", { class: "lane-name" }, h("span", { class: "swatch" }), name),
      h("span", { class: "legend-number" }, `${weight.toFixed(2)} ± ${found.deviation[name].toFixed(2)}, from ${found.region[name][0].toFixed(2)} to ${found.region[name][1].toFixed(2)}`)));
    const storing = choices.profiles && found.user !== null && found.choices > 0;
    place.replaceChildren(
      h("ul", { class: "legend" }, rows),
      h("p", { class: "hint" }, `The ranges hold ${Math.round(100 * found.credible)} % of what can be believed after these choices`,
        axes.length === 3 ? "; the triangle shows them around your point. " : ". ", "More choices make them smaller. The model supposes that you like a draft the better the nearer its weights are to yours; it does not know why you chose."),
      h("div", { class: "row" },
        h("button", { type: "button", class: "strong", on: { click: () => steer(store, at) } }, "Use this point"),
        storing ? h("button", { type: "button", on: { click: () => keepIt(found.user) } }, `Keep as profile ${found.user}`) : null,
        h("button", { type: "button", on: { click: () => start() } }, "Ask ten more"),
        h("button", { type: "button", class: "quiet", on: { click: () => store.set({ region: null }) } }, "Take it off the triangle")),
      ...(storing ? [] : [snippet(found)]));
    place.querySelector("button").focus({ preventScroll: true });
  }

  const keepIt = (name) => step("Keeping it.", () => pairs.learn({ store: true }), (found) => {
    result(found);
    told.textContent = `Kept: requests may say "profile": "${name}" from now on.`;
    actions.reload();
  });

  return { element, start, stop: () => round++ };
}

/** The corners of the region in the order of the axes; null where there is no triangle. */
function inAxes({ outline, weights }, axes) {
  const names = Object.keys(weights);
  return outline === null || axes.length !== 3 ? null : outline.map((corner) => axes.map((name) => corner[names.indexOf(name)]));
}

/** What it would be in bundle.yaml, where this server keeps none. */
function snippet({ weights, deviation, choices, user }) {
  const flow = (numbers) => `{${Object.entries(numbers).map(([name, value]) => `${name}: ${value.toFixed(3)}`).join(", ")}}`;
  const text = `profiles:\n  ${user ?? "mine"}:\n    weights: ${flow(weights)}\n    origin: {by: choices on the page, choices: ${choices}, deviation: ${flow(deviation)}}`;
  return h("details", { class: "as-profile" }, h("summary", {}, "As a profile in bundle.yaml"),
    h("pre", { tabindex: "0" }, text), copyButton(() => text));
}
