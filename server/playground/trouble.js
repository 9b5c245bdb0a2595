// What went wrong, in words, with a way on. Where waiting helps, the page waits as long as the server asked and tries
// again by itself.

import { byId, h } from "./dom.js";

const TRIES = 30; // by itself; then it waits for the person
const LONGEST_S = 15;

export function createTrouble() {
  const place = byId("trouble");
  let timer = null;
  let tries = 0;
  let owner = null;
  let again = () => {};
  const words = h("p", { role: "alert" });
  const waits = h("span", { class: "waits" });
  const button = h("button", { type: "button", on: { click: () => retry() } }, "Try again");
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this message", on: { click: () => clear() } }, "Close");
  place.replaceChildren(words, waits, h("div", { class: "row" }, button, close));

  /** Show `problem` of `whose` part; `retrying()` is what the button does. A later problem takes the place of an earlier. */
  function show(problem, retrying, whose) {
    clearInterval(timer);
    owner = whose;
    again = retrying;
    const said = problem.kind === undefined ? "This page failed on the answer; a new try may help." : problem.message;
    if (words.textContent !== said) words.textContent = said; // the same again would be read out again
    waits.textContent = "";
    place.hidden = false;
    button.hidden = problem.kind === "undrafted"; // it would be told the same
    if (problem.retryAfterS === null || problem.retryAfterS === undefined || tries >= TRIES) return;
    // Longer from try to try where the server said nothing better, so that many pages do not knock at once.
    let left = Math.max(problem.retryAfterS, problem.kind === "away" ? Math.min(LONGEST_S, 2 ** Math.floor(tries / 2)) : 0);
    const tell = () => (waits.textContent = `Trying again in ${left} s.`);
    tell();
    timer = setInterval(() => {
      left -= 1;
      if (left > 0) return tell();
      tries += 1;
      return retry();
    }, 1000);
  }

  function retry() {
    clearInterval(timer);
    waits.textContent = "Trying again.";
    again();
  }

  /** All is well again; with `whose`, only for that part. */
  function clear(whose = owner) {
    if (whose !== owner) return;
    clearInterval(timer);
    tries = 0;
    words.textContent = "";
    place.hidden = true;
  }

  return { show, clear };
}
