// What the page asks for, as the server's own fields.

/** Fields that a draft, the map and the snippets share. The seed makes no difference to a greedy text. */
export function sampling({ options }) {
  const fields = { max_new_tokens: options.maxTokens };
  if (options.temperature > 0) {
    fields.temperature = options.temperature;
    if (options.seed !== null) fields.seed = options.seed;
  }
  return fields;
}

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
  return { prompt: state.prompt.trim(), ...steering(state), ...sampling(state) };
}
