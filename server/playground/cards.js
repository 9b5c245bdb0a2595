// Drafts as cards side by side: the text, the words that are its own, its scores and its weights.

import { markedText } from "./differing.js";
import { h } from "./dom.js";
import { laneClass, percent } from "./lanes.js";

const WHY_NOT = {
  failed: "the scorer failed", timeout: "the scorer was too late", busy: "too many texts waited",
  code: "its code may not run on this server", too_long: "too long to score",
};

/** A card: `title`, `tag` (a word beside it, or null), `text`, `others` (texts to tell it from), and what comes below. */
export function card({ title, tag = null, text, others, className = "" }, ...below) {
  return h("article", { class: `card ${className}`, "aria-label": title },
    h("div", { class: "panel-head" }, h("h3", {}, title), tag === null ? null : h("span", { class: "tag" }, tag)),
    h("p", { class: "card-text" }, text ? markedText(text, others) : "(no text)"),
    ...below);
}

/** Each scorer's figure with a bar, or in words why there is none. */
export function scoreList({ scores, unscored, mean }, objectives) {
  const names = Object.keys(scores);
  if (!names.length) return h("p", { class: "hint" }, "Not scored: this bundle has no scorers here.");
  const row = (name, score) => h("li", { class: laneClass(name, objectives) },
    h("span", { class: "score-name" }, name),
    score === null
      ? h("span", { class: "score-none" }, `not scored: ${WHY_NOT[unscored[name]] ?? unscored[name]}`)
      : [h("span", { class: "score-track", "aria-hidden": "true" }, h("span", { class: "score-bar", vars: { "--wide": String(score) } })),
          h("span", { class: "score-number" }, score.toFixed(2))]);
  return h("div", { class: "scores" },
    h("p", { class: "hint" }, mean === null ? "Scores, 0 to 1" : `Scores, 0 to 1; mean ${mean.toFixed(2)}`),
    h("ul", { "aria-label": "Scores" }, names.map((name) => row(name, scores[name]))));
}

/** The weights that wrote it. */
export function weightList(weights, objectives) {
  const some = Object.entries(weights).filter(([, weight]) => weight > 0);
  return h("ul", { class: "pin-weights", "aria-label": "Weights" }, some.map(([name, weight]) =>
    h("li", { class: laneClass(name, objectives) }, h("span", { class: "swatch" }), `${name} ${percent(weight)}`)));
}

/** Why there is no card. */
export const NO_PROMPT = "There is nothing to answer yet: type what the client said.";
export const UNDRAFTED = "No draft was written; the notice in the draft's place says why.";

export const MARKED = "Words that no other draft has there are marked.";
