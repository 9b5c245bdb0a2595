// Drafts as files: JSON with the receipt, which can make the text again, and Markdown for people.

import { percent, shares } from "./lanes.js";
import { messagesOf } from "./request.js";

const NOTICE = "A draft by a language model. A person reviews it before use.";
const SAID_BY = { system: "System prompt", user: "What the client said", assistant: "What the counselor said" };

export function toJson(drafts, { model, version }) {
  const content = {
    format: "emorl-playground/1",
    exported: new Date().toISOString(),
    notice: NOTICE,
    model,
    version,
    drafts: drafts.map((draft) => {
      const { receipt = null, ...answer } = draft.answer;
      return { request: draft.request, answer, tokens: draft.tokens.map(({ type: _, ...token }) => token), receipt };
    }),
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}

export function toMarkdown(drafts, { model, version }) {
  const head = [`# ${drafts.length === 1 ? "Draft" : "Drafts"} by ${plain(model)}`, "", `> ${NOTICE}`, "", `emorl ${version}, ${new Date().toISOString()}.`];
  return `${[...head, ...drafts.flatMap((draft, i) => one(draft, drafts.length > 1 ? i + 1 : null))].join("\n")}\n`;
}

function one({ request, answer, tokens }, number) {
  const tipped = shares(tokens);
  const rows = Object.entries(answer.weights).map(([name, weight]) => `| ${plain(name)} | ${weight} | ${percent(tipped.get(name) ?? 0)} |`);
  const { receipt } = answer;
  const facts = [`ended: ${answer.finish_reason}`, `tokens: ${answer.usage.completion_tokens}`, `temperature: ${request.temperature ?? 0}`, `seed: ${answer.seed}`];
  if (answer.profile) facts.unshift(`profile: ${plain(answer.profile)}`);
  if (receipt) facts.push(`receipt: \`${receipt.id}\`, sha256 \`${receipt.sha256}\``);
  return [
    "", ...(number === null ? [] : [`## Draft ${number}`, ""]),
    ...messagesOf(request).flatMap(({ role, content }) => [`${SAID_BY[role]}:`, "", quote(content), ""]), "The draft:", "", quote(answer.text), "",
    "| objective | weight | share of what tipped the tokens |", "|---|---|---|", ...rows, "", ...facts.map((fact) => `- ${fact}`),
  ];
}

/** What Markdown or HTML would read as its own is written so that it stays text. */
const plain = (text) => text.replace(/[\\`*_{}[\]()#+\-.!|<>&~]/g, "\\$&");
const quote = (text) => text.split("\n").map((line) => `> ${plain(line)}`).join("\n");
