// The point: weights on the axes, and the profile that lies just there.

import { rounded, same } from "./simplex.js";

/** Weights of a profile on the axes, or null when it weighs something that is no axis. */
export function profileWeights(profile, axes) {
  const total = Object.values(profile.weights).reduce((sum, w) => sum + w, 0);
  const weights = axes.map((name) => (profile.weights[name] ?? 0) / total);
  const covered = weights.reduce((sum, w) => sum + w, 0);
  return Math.abs(covered - 1) < 1e-6 && weights.every((w) => w >= 0) ? weights : null;
}

/** Move the point; a profile that lies just there is named, so that requests can use its name. */
export function steer(store, weights, profile = null) {
  const to = rounded(weights);
  const { profiles, axes } = store.state;
  const there = profiles.find((each) => {
    const at = profileWeights(each, axes);
    return at !== null && (profile === null ? same(rounded(at), to) : each.name === profile);
  });
  store.set({ weights: to, profile: there?.name ?? null });
}
