// Drafts as they are written: one at a time, the newest wish wins and cancels the one before it.

import { follow } from "./api.js";
import { plainRequest } from "./request.js";

const PAUSE_MS = 90; // least time between two requests while the point is dragged

/**
 * A draft: `request` (as sent), `tokens`, `text`, `answer` (the server's last event, null before it) and `state`:
 * waiting, writing, done, stopped (by the person) or broken.
 */
export function createWriter(store, { onTrouble }) {
  let controller = null;
  let timer = null;
  let began = 0;

  /** Write what the page asks for now, soon; several wishes in a row become one. */
  function wish() {
    if (timer !== null) return;
    const wait = Math.max(0, began + PAUSE_MS - performance.now());
    timer = setTimeout(() => {
      timer = null;
      write();
    }, wait);
  }

  async function write() {
    const { state } = store;
    abort();
    if (!state.prompt.trim() || !state.axes.length) return;
    began = performance.now();
    const mine = (controller = new AbortController());
    const request = plainRequest(state);
    const draft = { request, weights: state.weights, axes: state.axes, profile: state.profile, tokens: [], text: "", answer: null };
    const tell = (now) => {
      if (!mine.signal.aborted) store.set({ draft: { ...draft, state: now } });
    };
    tell("waiting");
    try {
      for await (const event of follow("/generate", { ...request, attribution: true, receipt: true }, mine.signal)) {
        if (mine.signal.aborted) return;
        if (event.type === "token") {
          draft.tokens.push(event);
          draft.text += event.text;
          tell("writing");
        } else if (event.type === "done") {
          const { type: _, tokens: __, ...answer } = event;
          draft.answer = answer;
          draft.text = answer.text;
        }
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      tell("broken");
      controller = null;
      onTrouble(error, write);
      return;
    }
    tell("done");
    if (controller === mine) controller = null;
  }

  function abort() {
    clearTimeout(timer);
    timer = null;
    controller?.abort();
    controller = null;
  }

  /** The person has seen enough; what is there stays. */
  function stop() {
    const { draft } = store.state;
    abort();
    if (draft !== null && ["waiting", "writing"].includes(draft.state)) store.set({ draft: { ...draft, state: "stopped" } });
  }

  return { wish, write, stop };
}
