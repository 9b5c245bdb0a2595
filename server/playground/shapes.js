// How the regions of the map are drawn: cells of a grid, or polygons. Each gives elements for the layer under the pad's edge.

import { svg } from "./dom.js";

/** Of a grid: `at(weights)` is a cell's place in the picture, `spacing` the distance of two. */
export function cellsOf(regions, at, spacing, colour) {
  const found = regions.describe();
  return [
    ...found.flatMap((region, i) => region.cells.map((cell) => hexagon(at(cell), spacing, colour(region), i))),
    borders(regions.borders().map(([a, b]) => border(at(a), at(b), spacing))),
  ];
}

/** Of an exact map: `place(point)` takes the triangle of side 1 to the picture. */
export function polygonsOf(regions, place, colour) {
  const found = regions.describe();
  const outline = (corners) => corners.map(place).map(({ x, y }) => `${x.toFixed(3)},${y.toFixed(3)}`);
  return [
    ...found.flatMap((region, i) => region.pieces.map((corners) => cell(outline(corners), colour(region), i))),
    borders(found.flatMap(({ pieces }) => pieces.map((corners) => `M${outline(corners).join("L")}Z`))),
  ];
}

const cell = (points, colour, region) =>
  svg("polygon", { points: points.join(" "), class: "cell", "data-region": region, vars: { "--fill": colour } });

const borders = (pieces) => svg("path", { class: "map-borders", d: pieces.join("") });

/** A cell: all points nearer to this one than to any other of the grid; the pad's edge cuts it. */
function hexagon({ x, y }, spacing, colour, region) {
  const radius = (spacing / Math.sqrt(3)) * 1.02; // a hair larger, so that no ground shows between cells
  const points = [30, 90, 150, 210, 270, 330].map((degrees) => {
    const angle = (degrees * Math.PI) / 180;
    return `${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`;
  });
  return cell(points, colour, region);
}

/** The edge between two neighbouring cells, as a piece of a path. */
function border(a, b, spacing) {
  const [mx, my] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
  const half = spacing / Math.sqrt(3) / 2;
  const [dx, dy] = [((b.y - a.y) / spacing) * half, (-(b.x - a.x) / spacing) * half];
  return `M${(mx - dx).toFixed(2)} ${(my - dy).toFixed(2)}L${(mx + dx).toFixed(2)} ${(my + dy).toFixed(2)}`;
}
