// Which text lies where on the grid of the map. No elements here.

import { fadesApart } from "./regions.js";
import { nearestOnGrid } from "./simplex.js";

const TOWARDS = [[1, -1, 0], [0, 1, -1], [-1, 0, 1]]; // one of each pair of opposite neighbours

/** `counts`: the grid's vectors in whole numbers, in the order of the sweep. */
export function createRegions(counts) {
  const resolution = counts[0].reduce((a, b) => a + b, 0);
  const index = new Map(counts.map((each, i) => [each.join(), i]));
  const weights = counts.map((each) => each.map((count) => count / resolution));
  const texts = counts.map(() => null);
  let found = null; // regions, largest first; made when asked for

  function describe() {
    if (found !== null) return found;
    const cellsOf = new Map();
    texts.forEach((text, i) => {
      if (text === null) return;
      if (!cellsOf.has(text)) cellsOf.set(text, []);
      cellsOf.get(text).push(i);
    });
    const groups = [...cellsOf].sort((a, b) => b[1].length - a[1].length);
    const regionOf = new Map(groups.flatMap(([, cells], r) => cells.map((i) => [i, r])));
    const neighbours = groups.map(() => new Set());
    for (const [a, b] of pairs()) {
      const [r, s] = [regionOf.get(a), regionOf.get(b)];
      if (r === undefined || s === undefined || r === s) continue;
      neighbours[r].add(s);
      neighbours[s].add(r);
    }
    const fades = fadesApart(groups.map(([, cells]) => cells.length), neighbours);
    found = groups.map(([text, cells], r) => {
      const centre = [0, 1, 2].map((k) => cells.reduce((sum, i) => sum + weights[i][k], 0) / cells.length);
      return { text, cells: cells.map((i) => weights[i]), share: cells.length / counts.length, centre, fade: fades[r],
        middle: nearest(cells, centre) };
    });
    return found;
  }

  /** The cell of a region nearest to its centre, which itself may lie outside. */
  function nearest(cells, centre) {
    const away = (i) => weights[i].reduce((sum, w, k) => sum + (w - centre[k]) ** 2, 0);
    return weights[cells.reduce((best, i) => (away(i) < away(best) ? i : best))];
  }

  function* pairs() {
    for (const [i, each] of counts.entries()) {
      for (const step of TOWARDS) {
        const other = index.get(each.map((count, k) => count + step[k]).join());
        if (other !== undefined) yield [i, other];
      }
    }
  }

  function add(i, text) {
    texts[i] = text;
    found = null;
  }

  return {
    resolution,
    size: counts.length,
    add,
    /** The same by weights, which are a point of the grid. */
    place: (where, text) => add(index.get(nearestOnGrid(where, resolution).join()), text),
    get missing() {
      return texts.includes(null);
    },
    describe,
    /** Pairs of neighbouring weights with different texts. */
    borders: () => [...pairs()].filter(([a, b]) => texts[a] !== texts[b]).map(([a, b]) => [weights[a], weights[b]]),
    /** The number of the region at these weights, or null where none is known. */
    at(where) {
      const text = texts[index.get(nearestOnGrid(where, resolution).join())] ?? null;
      return text === null ? null : describe().findIndex((region) => region.text === text);
    },
    textOf: (region) => describe()[region].text,
    /** The text at weights that are a point of the grid; null for others and where none is known yet. */
    textAt(where) {
      const near = nearestOnGrid(where, resolution);
      const exact = near.every((count, k) => Math.abs(count / resolution - where[k]) < 1e-3);
      return exact ? (texts[index.get(near.join())] ?? null) : null;
    },
  };
}
