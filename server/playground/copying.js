// Text to the clipboard, and files to the disk.

import { h } from "./dom.js";

/** A button that copies what `text()` gives and says so. */
export function copyButton(text, name = "Copy") {
  const button = h("button", { type: "button", on: { click: copy } }, name);
  async function copy() {
    button.textContent = (await toClipboard(text())) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = name), 1600);
  }
  return button;
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return byOldMeans(text); // over plain HTTP there is no clipboard object
  }
}

function byOldMeans(text) {
  const before = document.activeElement;
  const area = h("textarea", { class: "offscreen", "aria-hidden": "true", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus({ preventScroll: true });
  return done;
}

/** Offer `text` as a file. Nothing leaves the browser. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
