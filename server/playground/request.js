// What the page asks for, as the server's own fields.

/** The sampling fields where they do nothing; the server's defaults. */
export const NEUTRAL = {
  temperature: 0, top_p: 1, top_k: 0, min_p: 0, seed: null,
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, no_repeat_ngram_size: 0,
};
const OF_DRAWING = new Set(["top_p", "top_k", "min_p", "seed"]); // they make no difference to a greedy text
const PENALTIES = ["repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"];

/** Fields that a draft, the map and the snippets share, without those that do nothing. */
export function sampling({ options }) {
  const { max_new_tokens, ...rest } = options;
  const matters = ([name, value]) => value !== NEUTRAL[name] && (options.temperature > 0 || !OF_DRAWING.has(name));
  return { max_new_tokens, ...Object.fromEntries(Object.entries(rest).filter(matters)) };
}

/** Whether the exact line between two vectors exists: greedy, and no token depends on those before it but by the model. */
export const isPlain = ({ options }) => options.temperature === 0 && PENALTIES.every((name) => options[name] === NEUTRAL[name]);

/** Whether the same request gives the same text again. */
export const isCertain = ({ options }) => options.temperature === 0 || options.seed !== null;

/** What is answered: a prompt, or the conversation so far where the bundle takes one. */
export function subjectOf({ chat, system, turns, prompt }, said = prompt.trim()) {
  if (chat === null) return { prompt: said };
  // The bundle's own is left out: an objective may put a sentence in its place, but never in that of a sent one.
  const first = system === bundleSystem(chat) ? [] : [{ role: "system", content: system }];
  return { messages: [...first, ...turns.map(({ role, text }) => ({ role, content: text })), { role: "user", content: said }] };
}

/** The same for a sweep, which takes several prompts. */
export function subjectOfSweep(state) {
  const { prompt, messages } = subjectOf(state);
  return messages === undefined ? { prompts: [prompt] } : { messages };
}

export const bundleSystem = (chat) => chat?.system ?? "";

/** A request's subject as messages, whichever way it was given. */
export const messagesOf = ({ prompt, messages }) => messages ?? [{ role: "user", content: prompt }];

/** The point as a request says it: by its profile's name where it lies on one, else by numbers. */
export function steering({ axes, weights, profile }) {
  if (profile !== null) return { profile };
  return { weights: named(axes, weights) };
}

/** Weights by name, zeros left out. */
export function named(axes, weights) {
  return Object.fromEntries(axes.map((name, i) => [name, weights[i]]).filter(([, weight]) => weight !== 0));
}

/** The body of `POST /generate` for the state of the page, without what only the page needs. */
export function plainRequest(state) {
  return { ...subjectOf(state), ...steering(state), ...sampling(state) };
}

/** What a text belongs to besides the weights; a map of another topic is out of date. */
export const topic = (state) => JSON.stringify([subjectOf(state), sampling(state)]);
