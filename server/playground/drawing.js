// A picture of all texts, the map or the line: drawn when a person asks, and by itself once the reply is whole and nobody
// waits for anything, until somebody does.

import { isPlain, topic } from "./request.js";
import { createRun } from "./sweeping.js";

const REST_MS = 600; // of quiet before it begins by itself
const MOST_MS = 60_000; // longer than this it holds up others for a picture that nobody asked for
const LONG = "The rest takes more than a minute: ask for it if you can wait.";

/**
 * `picture`: `request(state, own)` makes room for what comes and gives [path, body], where `own` says that the page
 * begins; `take(event)`; `paint()`; `forget()` lets it go and paints; `isEmpty()`, `isWhole()`; `isExact()`, whether a
 * person wants the kind that the page draws by itself.
 */
export function createDrawing(store, actions, picture) {
  let begins = null;
  let ends = null;
  let own = false; // what runs, or ran, was begun by the page
  let settled = null; // the topic that is drawn, or was given up
  let wanted = true; // until a person hides it
  let broken = ""; // why it is not whole
  const run = createRun(
    (event) => {
      actions.fine();
      picture.take(event);
    },
    (error) => {
      settle(error !== null && own ? error.message : "");
      if (error === null || own || picture.isWhole()) picture.paint();
      else picture.forget();
      if (error !== null && !own) actions.trouble(error, start);
    },
  );

  function settle(why) {
    settled = store.state.map.topic;
    broken = why;
  }

  function start() {
    if (!store.state.prompt.trim()) return actions.needPrompt();
    wanted = true;
    return begin(false);
  }

  function begin(byItself) {
    own = byItself;
    broken = "";
    clearTimeout(ends);
    if (own) ends = setTimeout(() => own && run.busy && stop(LONG), MOST_MS);
    const [path, body] = picture.request(store.state, own);
    clearTimeout(begins); // the store has told that there is a picture, and nothing runs yet
    run.start(path, body, { byItself });
    picture.paint();
  }

  /** What was found so far stays. `why`: it does not go on by itself. */
  function stop(why = null) {
    run.stop();
    if (why !== null) settle(why);
    if (picture.isEmpty()) picture.forget();
    else picture.paint();
  }

  function hide() {
    wanted = false;
    run.stop();
    picture.forget();
  }

  store.watch(["asked", "hidden", "draft", "prompt", "turns", "system", "options", "map"], (state) => {
    clearTimeout(begins);
    if (run.busy) {
      if (isStale(state) || (own && !isQuiet(state))) stop();
    } else if (wanted && isQuiet(state) && whyAsked(state) === null && picture.isExact() && settled !== topic(state)) {
      begins = setTimeout(() => begin(true), REST_MS);
    }
  });
  store.atEnd(() => {
    clearTimeout(begins);
    clearTimeout(ends);
    run.stop();
  });
  return {
    start,
    hide,
    get busy() {
      return run.busy;
    },
    get own() {
      return own;
    },
    /** Of a picture that is not whole. */
    soFar: (texts) => (picture.isEmpty() ? broken : `${texts} so far. ${broken}`),
    /** Why it is not drawn by itself, in words, or null. */
    whyNot: (state) => (wanted && state.draft !== null ? whyAsked(state) : null),
  };
}

/** Whether the picture is of another prompt or other options. */
export const isStale = (state) => state.map !== null && state.map.topic !== topic(state);

const isQuiet = (state) => state.asked === 0 && !state.hidden && state.draft?.state === "done" && state.draft.topic === topic(state);

function whyAsked(state) {
  if (!isPlain(state)) return "the options let chance or earlier words decide";
  if (navigator.connection?.saveData || matchMedia("(prefers-reduced-data: reduce)").matches) return "your browser asks to save data";
  return null;
}
