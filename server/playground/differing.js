// Which words of a text none of the others has in its place.

import { diff } from "./diff.js";
import { h } from "./dom.js";

/** Runs of `{text, own}` that make up `text`; own: no other text has these words there. */
export function ownWords(text, others) {
  const own = new Array(text.length).fill(others.length > 0);
  for (const other of others) {
    let at = 0;
    for (const { kind, text: run } of diff(other, text)) {
      if (kind === "gone") continue;
      if (kind === "same") own.fill(false, at, at + run.length);
      at += run.length;
    }
  }
  const runs = [];
  for (let i = 0; i < text.length; i++) {
    if (runs.at(-1)?.own === own[i]) runs.at(-1).text += text[i];
    else runs.push({ text: text[i], own: own[i] });
  }
  return runs;
}

/** The same as elements: what is its own is marked, but for the space at the end. */
export function markedText(text, others) {
  return ownWords(text, others).flatMap(({ text: run, own }) => {
    if (!own) return [run];
    const words = run.trimEnd();
    return words ? [h("mark", {}, words), run.slice(words.length)] : [run];
  });
}
