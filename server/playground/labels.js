// Where the names of points on the pad go, so that they hide neither each other nor what lies under the handle. Pure
// functions over boxes {left, top, right, bottom} in units of the picture.

const LETTER = 6.7; // mean width at 12 units
const HIGH = 13;
const AWAY = 10; // from the point's middle to its name

export const disc = ({ x, y }, r) => ({ left: x - r, right: x + r, top: y - r, bottom: y + r });

/** The box of `text` beside a point, for each side in the order in which they are preferred. */
function candidates({ x, y }, text) {
  const wide = text.length * LETTER;
  const beside = (left, middle, anchor, at) => ({
    anchor, x: at, y: middle + 4, box: { left, right: left + wide, top: middle - HIGH / 2, bottom: middle + HIGH / 2 },
  });
  return [
    beside(x + AWAY, y, "start", x + AWAY),
    beside(x - AWAY - wide, y, "end", x - AWAY),
    beside(x - wide / 2, y + AWAY + 8, "middle", x),
    beside(x - wide / 2, y - AWAY - 6, "middle", x),
    beside(x + 22, y, "start", x + 22),
    beside(x - 22 - wide, y, "end", x - 22),
    beside(x - wide / 2, y + 30, "middle", x),
    beside(x - wide / 2, y - 28, "middle", x),
  ];
}

/** How much of two boxes is common, as an area. */
export function overlap(a, b) {
  const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return wide > 0 && high > 0 ? wide * high : 0;
}

/**
 * For each of `points` {x, y, text} the place of its text {x, y, anchor, box}: the first side where it covers nothing, or
 * the one where it covers least. `taken`: boxes to keep clear of; `frame`: the box to stay in.
 */
export function placeLabels(points, taken, frame) {
  const covered = [...taken];
  return points.map((point) => {
    const cost = ({ box }) => {
      const outside = Math.max(0, frame.left - box.left) + Math.max(0, box.right - frame.right) + Math.max(0, box.bottom - frame.bottom);
      return outside * HIGH + covered.reduce((sum, each) => sum + overlap(box, each), 0);
    };
    let best = null;
    for (const each of candidates(point, point.text)) {
      const costs = cost(each);
      if (best === null || costs < best.costs) best = { ...each, costs };
    }
    covered.push(best.box);
    return best;
  });
}

const LARGEST = 13;
const SMALLEST = 7.5;

/**
 * Where the number of a region of the map goes: on the one of its `cells` nearest to `middle` where it covers none of
 * `taken`, as large as the region lets it. `fits` is false where it would be too small to read.
 */
export function placeNumber(cells, middle, spacing, text, taken) {
  const room = 0.8 * spacing * Math.sqrt(cells.length);
  const size = Math.min(LARGEST, room / (0.62 * text.length));
  const away = ({ x, y }) => (x - middle.x) ** 2 + (y - middle.y) ** 2;
  const box = ({ x, y }) => ({ left: x - 0.31 * size * text.length, right: x + 0.31 * size * text.length, top: y - size / 2, bottom: y + size / 2 });
  const near = [...cells].sort((a, b) => away(a) - away(b));
  const place = near.find((cell) => taken.every((each) => overlap(box(cell), each) === 0)) ?? middle;
  return { ...place, size: Math.max(size, SMALLEST), fits: size >= SMALLEST };
}
