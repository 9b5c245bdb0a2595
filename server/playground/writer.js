// Drafts as they are written: one at a time, the newest wish wins and cancels the one before it.

import { follow } from "./api.js";
import { createMemory } from "./memory.js";
import { isCertain, plainRequest, topic } from "./request.js";
import { same } from "./simplex.js";

// Least time between two requests while the point is dragged. On a slow model it is as long as the first token takes, so
// that each of them shows something before the next one cancels it.
const LEAST_MS = 90;
const MOST_MS = 1500;
const REST_MS = 300; // how long the point lies still on a text that a map knows, before the server is asked for its parts

/**
 * A draft: `request` (as sent), `said` (what it answers), `topic`, `weights`, `axes`, `profile`, `tokens`, `text`,
 * `expected` (the whole text, where a map knew it before), `answer` (the server's last event, null before it), `repeats`
 * (other weights gave the same text just before) and `state`: known (by the map alone), waiting, writing, done, stopped
 * (by the person) or broken.
 */
export function createWriter(store, { onTrouble }) {
  const memory = createMemory();
  let controller = null;
  let timer = null;
  let began = 0;
  let firstToken = 0; // how long it took, ms, smoothed
  let last = null; // the last whole draft

  /** Write what the page asks for now, soon; several wishes in a row become one. */
  function wish() {
    if (!store.state.prompt.trim()) return clear();
    const draft = begun();
    const before = isCertain(store.state) ? memory.recall(draft.request) : null;
    if (before !== null) {
      abort();
      return finish({ ...draft, ...before });
    }
    if (draft.expected !== null) {
      abort();
      store.set({ draft: { ...draft, text: draft.expected, state: "known" } });
      timer = setTimeout(write, REST_MS);
      return undefined;
    }
    if (timer !== null) return undefined;
    const pause = Math.min(MOST_MS, Math.max(LEAST_MS, firstToken));
    timer = setTimeout(write, Math.max(0, began + pause - performance.now()));
    return undefined;
  }

  function begun() {
    const { state } = store;
    return {
      request: plainRequest(state), said: state.prompt.trim(), topic: topic(state), weights: state.weights, axes: state.axes,
      profile: state.profile, tokens: [], text: "", answer: null, expected: state.map?.textAt(state) ?? null, repeats: false,
    };
  }

  /** Write it now, by the server, whatever is remembered. */
  async function write() {
    abort();
    if (!store.state.prompt.trim()) return clear();
    if (!store.state.axes.length) return undefined;
    began = performance.now();
    const mine = (controller = new AbortController());
    const draft = begun();
    const certain = isCertain(store.state);
    const tell = (now) => {
      if (!mine.signal.aborted) store.set({ draft: { ...draft, state: now }, notice: null });
    };
    tell("waiting");
    try {
      for await (const event of follow("/generate", { ...draft.request, attribution: true, receipt: true }, mine.signal)) {
        if (mine.signal.aborted) return undefined;
        if (event.type === "token") {
          if (!draft.tokens.length) firstToken = firstToken ? 0.5 * (firstToken + performance.now() - began) : performance.now() - began;
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
      if (mine.signal.aborted) return undefined;
      if (error.kind === "undrafted") return clear(error.message);
      tell("broken");
      controller = null;
      onTrouble(error, write);
      return undefined;
    }
    if (mine.signal.aborted) return undefined;
    controller = null;
    if (certain) memory.keep(draft);
    return finish(draft);
  }

  function finish(draft) {
    const repeats = last !== null && last.topic === draft.topic && last.text === draft.text && !same(last.weights, draft.weights);
    last = draft;
    store.set({ draft: { ...draft, repeats, state: "done" } });
  }

  function abort() {
    clearTimeout(timer);
    timer = null;
    controller?.abort();
    controller = null;
  }

  /** There is nothing to answer, or no draft of it: `notice` says why. */
  function clear(notice = null) {
    abort();
    store.set({ draft: null, notice });
  }

  /** The person has seen enough; what is there stays. */
  function stop() {
    const { draft } = store.state;
    abort();
    if (draft !== null && ["waiting", "writing"].includes(draft.state)) store.set({ draft: { ...draft, state: "stopped" } });
  }

  /** Another server, or another bundle: what was written before would be written differently. */
  function forget() {
    memory.clear();
    last = null;
  }

  return { wish, write, stop, forget };
}
