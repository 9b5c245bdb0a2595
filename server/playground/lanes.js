// How an objective looks. On this page colour means objective and nothing else; a line's pattern says it again for
// those who do not see the colours apart.

const PATTERNS = ["solid", "dashed", "dotted", "double", "wavy"];
const COLOURS = 8;

/** The class that gives `--lane` its colour and its pattern (theme.css); `base` is grey. */
export function laneClass(lane, objectives) {
  const index = objectives.indexOf(lane);
  return index < 0 ? "lane-base pattern-dashed" : `lane-${index % COLOURS} pattern-${PATTERNS[index % PATTERNS.length]}`;
}

/** The CSS colour of an objective. */
export function laneColour(lane, objectives) {
  const index = objectives.indexOf(lane);
  return index < 0 ? "var(--lane-base)" : `var(--lane-${index % COLOURS})`;
}

/**
 * The colour of a mix of objectives: theirs, mixed by the squares of their weights, since plain mixing makes the middle
 * grey; `fade` 0 to 1 lets the ground through.
 */
export function mixColour(axes, weights, objectives, fade = 0) {
  let mixed = null;
  let sum = 0;
  let most = 0;
  axes.forEach((lane, i) => {
    const part = weights[i] ** 2;
    if (part === 0) return;
    sum += part;
    most = Math.max(most, part);
    const colour = laneColour(lane, objectives);
    mixed = mixed === null ? colour : `color-mix(in oklab, ${mixed}, ${colour} ${((100 * part) / sum).toFixed(1)}%)`;
  });
  const ground = fade + (1 - fade) * 0.6 * (sum > 0 ? 1 - most / sum : 0); // no objective ahead: pale, not dark
  return `color-mix(in oklab, ${mixed ?? "var(--lane-base)"}, var(--surface) ${(100 * ground).toFixed(0)}%)`;
}

/** What each objective did for a token: its parts of the margin, and among those that spoke for it, who tipped it. */
export function verdict(attribution) {
  const parts = Object.entries(attribution ?? {});
  const margin = parts.reduce((sum, [, part]) => sum + part, 0);
  const spokeFor = parts.reduce((sum, [, part]) => sum + Math.max(part, 0), 0);
  if (!spokeFor) return { parts, margin, lane: null, share: 0 };
  const [lane, most] = parts.reduce((best, each) => (each[1] > best[1] ? each : best));
  return { parts, margin, lane, share: most / spokeFor };
}

/** Each objective's share of all that spoke for the tokens: of every token in which one did, the same amount. */
export function shares(tokens) {
  const sums = new Map();
  let counted = 0;
  for (const { attribution } of tokens) {
    const parts = Object.entries(attribution ?? {});
    const spokeFor = parts.reduce((sum, [, part]) => sum + Math.max(part, 0), 0);
    if (!spokeFor) continue;
    counted += 1;
    for (const [lane, part] of parts) sums.set(lane, (sums.get(lane) ?? 0) + Math.max(part, 0) / spokeFor);
  }
  return new Map([...sums].map(([lane, sum]) => [lane, sum / counted]));
}

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 1 : 0)} %`;
export const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/** A strip of the objectives' colours, each as wide as its weight. */
export function mixStrip(axes, weights, objectives) {
  let from = 0;
  const stops = axes.flatMap((lane, i) => {
    if (weights[i] === 0) return [];
    const to = from + 100 * weights[i];
    const stop = `${laneColour(lane, objectives)} ${from.toFixed(2)}% ${to.toFixed(2)}%`;
    from = to;
    return [stop];
  });
  return stops.length ? `linear-gradient(90deg, ${stops.join(", ")})` : "var(--line)";
}
