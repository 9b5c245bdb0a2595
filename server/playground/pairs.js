// Pairs of drafts to choose between: of several statements in turn, at the weights whose comparison tells the server most.

import { ask } from "./api.js";
import { examplesFor } from "./examples.js";
import { keptFor, shown } from "./keeping.js";
import { sampling, subjectOf } from "./request.js";

const LOOKED_AT = 16; // weights for each statement, and at most as many texts

/** What a person has said so far, and the next pair to ask about. One for each time that weights are looked for. */
export function createPairs(state) {
  const user = keptFor(state);
  const choices = []; // of this page
  const statements = statementsOf(state).map((each) => ({ ...each, drafts: null, seen: [] }));
  // The most likely text of each of the weights: one that is drawn says less about them.
  const wide = { temperature: 0, count: LOOKED_AT, candidates: Math.min(LOOKED_AT, state.limits.max_sweep), diversity: 0, min_distance: 0, receipt: false };
  let turn = 0;

  /** The different drafts of a statement; none where the policy has none written. */
  function draftsOf(statement) {
    statement.drafts ??= ask("/drafts", { body: { ...statement.subject, ...sampling(state), ...wide } }).then(
      ({ drafts }) => drafts.filter(({ text }) => text.trim()),
      (error) => {
        statement.drafts = null; // to be asked for again
        if (error.kind === "undrafted") return [];
        throw error;
      },
    );
    return statement.drafts;
  }

  /** {said, drafts: [two], isLast} or null when no pair of different drafts is left. Throws `Trouble`. */
  async function next() {
    for (let tried = 0; tried < statements.length; tried++) {
      const statement = statements[(turn + tried) % statements.length];
      const drafts = await draftsOf(statement);
      if (statement.seen.length >= (drafts.length * (drafts.length - 1)) / 2) continue;
      const candidates = drafts.map(({ centre }) => centre);
      const { pair } = await ask("/choices/next", { body: { ...evidence(), candidates, without: statement.seen } });
      statement.seen.push(pair);
      turn += tried + 1;
      draftsOf(statements[turn % statements.length]).catch(() => {}); // ahead of time; a failure is told when it is needed
      const sides = Math.random() < 0.5 ? pair : [...pair].reverse(); // the better one would always stand first
      return { said: statement.said, drafts: sides.map((i) => drafts[i]) };
    }
    return null;
  }

  /** `taken`: 0, 1, or null for neither. */
  async function choose(drafts, taken) {
    const made = drafts.map((draft, i) => shown(draft, taken === null ? "rejected" : i === taken ? "taken" : "left"));
    if (user !== null) await ask("/choices", { body: { user, shown: made } });
    choices.push({ shown: made });
  }

  const evidence = () => (user === null ? { choices } : { user });
  return {
    next,
    choose,
    /** Pairs of this time of which one was taken. */
    get taken() {
      return choices.filter(({ shown: both }) => both.some(({ outcome }) => outcome === "taken")).length;
    },
    /** `more`: further fields of `POST /profiles/learn`. */
    learn: (more = {}) => ask("/profiles/learn", { body: { ...evidence(), ...more } }),
  };
}

/** What the client says now, and then the examples. */
function statementsOf(state) {
  const now = state.prompt.trim() ? [{ said: state.prompt.trim(), subject: subjectOf(state) }] : [];
  const examples = examplesFor(state.chat)
    .filter(({ said }) => said !== state.prompt.trim())
    .map(({ said, turns }) => ({ said, subject: subjectOf({ ...state, turns }, said) }));
  return [...now, ...examples];
}
