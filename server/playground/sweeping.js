// What the map and the line have in common: one streamed request at a time.

import { follow } from "./api.js";

/** `onEvent(event)` for each event, `onEnd(error | null)` at the end (an abort is no end). */
export function createRun(onEvent, onEnd) {
  let controller = null;
  return {
    get busy() {
      return controller !== null;
    },
    /** `byItself`: no person waits for it. */
    async start(path, body, { byItself = false } = {}) {
      this.stop();
      const mine = (controller = new AbortController());
      let failure = null;
      try {
        for await (const event of follow(path, body, mine.signal, { byItself })) {
          if (mine.signal.aborted) return;
          onEvent(event);
        }
      } catch (error) {
        failure = error;
      }
      if (mine.signal.aborted) return;
      controller = null;
      onEnd(failure);
    },
    stop() {
      controller?.abort();
      controller = null;
    },
  };
}
