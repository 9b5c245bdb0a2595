// How far the draft is, for the eye: a bar in the colour of the mix, and words once it takes a while.

import { byId } from "./dom.js";

const SLOW_MS = 900; // waiting longer than this is said

export function createPace(store) {
  const bar = byId("progress");
  const words = byId("pace");
  let began = 0;
  let first = 0;
  let ticking = null;

  store.watch(["draft"], ({ draft }) => {
    const state = draft?.state ?? "none";
    const runs = state === "waiting" || state === "writing";
    bar.dataset.state = state;
    if (state === "waiting") began = performance.now();
    if (state === "writing" && draft.tokens.length <= 1) first = performance.now();
    clearInterval(ticking);
    ticking = runs ? setInterval(() => tell(store.state.draft), 250) : null;
    if (!runs) words.textContent = "";
    else if (state === "writing") tell(draft);
  });

  function tell(draft) {
    const now = performance.now();
    const count = draft?.tokens.length ?? 0;
    if (count === 0) {
      words.textContent = now - began > SLOW_MS ? `Reading, ${Math.round((now - began) / 1000)} s` : "";
      return;
    }
    const rate = count > 4 ? ` · ${((1000 * (count - 1)) / Math.max(1, now - first)).toFixed(0)} a second` : "";
    words.textContent = now - began > SLOW_MS ? `${count} tokens${rate}` : "";
  }
}
