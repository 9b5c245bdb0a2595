// Drafts that were written before, so that coming back to a point asks the server for nothing.

const MOST = 80;

export function createMemory() {
  const drafts = new Map(); // in the order of use
  const keyOf = (request) => JSON.stringify(request);
  return {
    /** `draft`: a whole one, of a request that gives the same text again. */
    keep({ request, tokens, text, answer }) {
      const key = keyOf(request);
      drafts.delete(key);
      drafts.set(key, { tokens, text, answer });
      if (drafts.size > MOST) drafts.delete(drafts.keys().next().value);
    },
    recall(request) {
      const key = keyOf(request);
      const found = drafts.get(key) ?? null;
      if (found === null) return null;
      drafts.delete(key);
      drafts.set(key, found);
      return found;
    },
    clear: () => drafts.clear(),
  };
}
