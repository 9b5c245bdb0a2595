// The profiles on the pad: named points that can be taken, with names that get out of the handle's way.

import { svg } from "./dom.js";
import { disc, placeLabels } from "./labels.js";
import { profileWeights } from "./point.js";
import { toPoint } from "./simplex.js";

export const HANDLE = 16; // the handle's radius, in units of the picture
const DOT = 7;

/** `geometry`: {place(point) -> picture, frame}. Gives the layer, and `taken()`: the boxes that numbers keep clear of. */
export function createProfiles(store, geometry) {
  const { profiles, axes } = store.state;
  const at = (weights) => geometry.place(toPoint(weights));
  const points = profiles.flatMap((profile) => {
    const weights = profileWeights(profile, axes);
    return weights === null ? [] : [{ name: profile.name, text: profile.name, ...at(weights) }];
  });
  const groups = points.map(({ name, x, y }) => svg("g", { class: "pad-profile", "data-profile": name },
    svg("circle", { cx: x, cy: y, r: 12, class: "pad-reach" }), svg("circle", { cx: x, cy: y, r: 4 }), svg("text", {}, name)));
  const dots = points.map((point) => disc(point, DOT));
  let labels = [];

  store.watch(["weights"], ({ weights }) => {
    labels = placeLabels(points, [disc(at(weights), HANDLE), ...dots], geometry.frame);
    labels.forEach(({ x, y, anchor }, i) => {
      const text = groups[i].querySelector("text");
      for (const [name, value] of Object.entries({ x, y, "text-anchor": anchor })) text.setAttribute(name, value);
    });
  });
  store.watch(["profile"], ({ profile }) => {
    for (const each of groups) each.classList.toggle("here", each.dataset.profile === profile);
  });
  return { layer: svg("g", {}, groups), taken: () => [...dots, ...labels.map(({ box }) => box)] };
}
