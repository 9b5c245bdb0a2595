// Which words two texts do not share: longest common subsequence over words and marks, spaces going with the word before.

const PIECES = /(?:[\p{L}\p{N}\p{M}'’]+|[^\s\p{L}\p{N}\p{M}])\s*|^\s+/gu;
const MOST = 4e6; // cells of the table; beyond them everything counts as different

/** Runs of `{text, kind}`; kind: same, gone (only in `before`) or new (only in `after`). */
export function diff(before, after) {
  const [a, b] = [before, after].map((text) => text.match(PIECES) ?? []);
  if (a.length * b.length > MOST) return [{ kind: "gone", text: before }, { kind: "new", text: after }];
  const [x, y] = [a, b].map((pieces) => pieces.map((piece) => piece.trimEnd()));
  const table = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      table[i][j] = x[i] === y[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  const runs = [];
  const add = (kind, text) => (runs.at(-1)?.kind === kind ? (runs.at(-1).text += text) : runs.push({ kind, text }));
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && x[i] === y[j]) {
      add("same", b[j++]);
      i++;
    } else if (j >= b.length || (i < a.length && table[i + 1][j] >= table[i][j + 1])) add("gone", a[i++]);
    else add("new", b[j++]);
  }
  return runs;
}
