// Weights that sum to 1, as points of a line or a triangle. Pure functions; weights are arrays in the order of the axes.

/** Corners of the triangle in the unit square, y down, side 1: first axis on top, then bottom left, bottom right. */
export const HEIGHT = Math.sqrt(3) / 2;
export const CORNERS = [
  { x: 0.5, y: 0 },
  { x: 0, y: HEIGHT },
  { x: 1, y: HEIGHT },
];

export function toPoint(weights) {
  return weights.reduce((at, w, i) => ({ x: at.x + w * CORNERS[i].x, y: at.y + w * CORNERS[i].y }), { x: 0, y: 0 });
}

/** Barycentric coordinates; outside the triangle those of the nearest point in it. */
export function toWeights({ x, y }) {
  const top = 1 - y / HEIGHT;
  const right = x - top / 2;
  return project([top, 1 - top - right, right]);
}

/**
 * The nearest weights that are >= 0 and sum to 1. The triangle is equilateral, so nearest on the page is nearest among
 * the weights (Duchi et al. 2008, projection onto the simplex by sorting).
 */
export function project(values) {
  const sorted = [...values].sort((a, b) => b - a);
  let sum = 0;
  let shift = 0;
  sorted.forEach((value, i) => {
    sum += value;
    const each = (sum - 1) / (i + 1);
    if (value > each) shift = each;
  });
  return values.map((value) => Math.max(0, value - shift));
}

/** Set one weight; the others keep their proportions (or share evenly when all were 0) and make up the rest. */
export function relink(weights, index, value) {
  const mine = Math.min(1, Math.max(0, value));
  const others = weights.reduce((sum, w, i) => (i === index ? sum : sum + w), 0);
  const even = 1 / Math.max(1, weights.length - 1);
  return weights.map((w, i) => (i === index ? mine : (1 - mine) * (others > 0 ? w / others : even)));
}

const DIGITS = 4;

/** Rounded to four decimals and still summing to exactly 1 in them (largest remainders). */
export function rounded(weights) {
  const unit = 10 ** DIGITS;
  return nearestOnGrid(weights, unit).map((count) => Number((count / unit).toFixed(DIGITS)));
}

/** Whole numbers that sum to `resolution`, nearest to `weights * resolution`. */
export function nearestOnGrid(weights, resolution) {
  const scaled = weights.map((w) => w * resolution);
  const counts = scaled.map((s) => Math.floor(s + 1e-9));
  let left = resolution - counts.reduce((a, b) => a + b, 0);
  const byRest = scaled.map((s, i) => [s - counts[i], i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  for (let i = 0; left > 0; i = (i + 1) % byRest.length, left--) counts[byRest[i][1]] += 1;
  return counts;
}

/** Every vector of whole numbers that sums to `resolution`, `parts` long. */
export function compositions(resolution, parts) {
  if (parts === 1) return [[resolution]];
  const found = [];
  for (let first = resolution; first >= 0; first--) {
    for (const rest of compositions(resolution - first, parts - 1)) found.push([first, ...rest]);
  }
  return found;
}

export function same(a, b, within = 1e-6) {
  return a.length === b.length && a.every((value, i) => Math.abs(value - b[i]) <= within);
}
