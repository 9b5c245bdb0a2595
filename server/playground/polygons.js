// Which text lies where on an exact map, whose regions are polygons. No elements here.

import { fadesApart } from "./regions.js";
import { toPoint, toWeights } from "./simplex.js";

const ROUNDED = 1e-4; // weights are sent with four decimals
const BESIDE = 1e-3; // from an edge to what lies on its other side
const SPOTS = [0.1, 0.3, 0.5, 0.7, 0.9]; // of an edge, where that is looked for

/** Regions like those of `createRegions`, but of polygons, which come one by one. A text may have several. */
export function createPolygons() {
  const pieces = []; // {text, share, corners, sides, middle, depth}
  let found = null; // regions, largest first; made when asked for

  function describe() {
    if (found !== null) return found;
    const ofText = new Map();
    for (const piece of pieces) {
      if (!ofText.has(piece.text)) ofText.set(piece.text, []);
      ofText.get(piece.text).push(piece);
    }
    const sum = (group) => group.reduce((all, { share }) => all + share, 0);
    const groups = [...ofText].map(([text, group]) => ({ text, group, share: sum(group) })).sort((a, b) => b.share - a.share);
    const regionOf = new Map(groups.flatMap(({ group }, r) => group.map((piece) => [piece, r])));
    const neighbours = groups.map(() => new Set());
    for (const piece of pieces) {
      for (const other of around(piece)) {
        const [r, s] = [regionOf.get(piece), regionOf.get(other)];
        if (r === s) continue;
        neighbours[r].add(s);
        neighbours[s].add(r);
      }
    }
    const fades = fadesApart(groups.map(({ share }) => share), neighbours);
    found = groups.map(({ text, group, share }, r) => {
      const largest = group.reduce((best, piece) => (piece.share > best.share ? piece : best));
      const middle = toWeights(largest.middle);
      return { text, share, fade: fades[r], centre: middle, middle, room: largest.depth, pieces: group.map(({ corners }) => corners) };
    });
    return found;
  }

  /** What lies beyond the edges of a piece. */
  function around(piece) {
    return edges(piece.corners).flatMap(([a, b]) => SPOTS.map((t) => {
      const [x, y] = [a.x + t * (b.x - a.x), a.y + t * (b.y - a.y)];
      const away = Math.hypot(x - piece.middle.x, y - piece.middle.y) || 1;
      return holding({ x: x + (BESIDE * (x - piece.middle.x)) / away, y: y + (BESIDE * (y - piece.middle.y)) / away });
    })).filter((other) => other !== null && other !== piece);
  }

  const holding = (point) => pieces.find(({ sides }) => depth(sides, point) >= 0) ?? null;

  return {
    resolution: null,
    /** A piece that is known already, of a map that was begun again, changes nothing. */
    add(polygon, text, share) {
      const corners = polygon.map(toPoint);
      const middle = centroid(corners);
      if (holding(middle)?.text === text) return;
      const sides = sidesOf(corners);
      pieces.push({ text, share, corners, sides, middle, depth: depth(sides, middle) });
      found = null;
    },
    get missing() {
      return pieces.reduce((sum, { share }) => sum + share, 0) < 1 - 1e-6;
    },
    describe,
    /** The number of the region at these weights, or null where none is known. */
    at(where) {
      const piece = holding(toPoint(where));
      return piece === null ? null : describe().findIndex(({ text }) => text === piece.text);
    },
    textOf: (region) => describe()[region].text,
    /** The text at these weights, where it is known and no border is so near that rounding decides. */
    textAt(where) {
      const point = toPoint(where);
      const near = pieces.filter(({ sides }) => depth(sides, point) > -ROUNDED);
      return near.length && near.every(({ text }) => text === near[0].text) ? near[0].text : null;
    },
  };
}

const edges = (corners) => corners.map((corner, i) => [corner, corners[(i + 1) % corners.length]]);

const area = (corners) => edges(corners).reduce((sum, [a, b]) => sum + a.x * b.y - b.x * a.y, 0) / 2;

/** A convex polygon's edges as [a, b, c]: a x + b y + c is how far a point lies within. */
function sidesOf(corners) {
  const turn = Math.sign(area(corners)) || 1;
  return edges(corners).map(([from, to]) => {
    const long = (Math.hypot(to.x - from.x, to.y - from.y) || 1) * turn;
    const [a, b] = [(from.y - to.y) / long, (to.x - from.x) / long];
    return [a, b, -a * from.x - b * from.y];
  });
}

/** How far a point lies inside a convex polygon; negative outside. */
function depth(sides, { x, y }) {
  let least = Infinity;
  for (const [a, b, c] of sides) least = Math.min(least, a * x + b * y + c);
  return least;
}

function centroid(corners) {
  const whole = area(corners);
  const mean = (axis) => corners.reduce((sum, corner) => sum + corner[axis], 0) / corners.length;
  if (Math.abs(whole) < 1e-12) return { x: mean("x"), y: mean("y") };
  const along = (axis) => edges(corners).reduce((sum, [a, b]) => sum + (a[axis] + b[axis]) * (a.x * b.y - b.x * a.y), 0) / (6 * whole);
  return { x: along("x"), y: along("y") };
}
