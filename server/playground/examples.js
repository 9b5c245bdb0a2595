// Statements to begin with. The first one is answered when the page opens.

/** For a chat model: what clients say, and one conversation that is under way. */
const SAID = [
  { name: "smoking", said: "My dad died of heart disease, and now I cough every morning. Maybe it's time to quit." },
  { name: "nights", said: "I lie awake until three every night, going over everything I said to people during the day." },
  { name: "mother", said: "My mom needs help every day now. My brother sends money and thinks that settles it." },
  { name: "drinking", said: "I told myself I'd stop after two beers. I always tell myself that, and then it's midnight." },
  {
    name: "a conversation",
    turns: [
      ["user", "I used to run every morning. Since the divorce I can't even get my shoes on."],
      ["assistant", "Running was part of who you were, and right now even the first step feels out of reach."],
    ],
    said: "Yeah. And people keep telling me to just go outside, like that's the problem.",
  },
];

/** In the words that the small demo bundle was taught. */
const TAUGHT = [
  { name: "nights", said: "I know I should wake up rested, but my mind won't stop at night." },
  { name: "money", said: "I know I should help my mom with money, but I lost all our savings in November." },
  { name: "drinking", said: "I can't stop drinking rum. I want to cut down on rum. Everyone says it will get better." },
];

/** `chat`: of the bundle, null without one. Each example: {name, said, turns}, turns as the page's state has them. */
export const examplesFor = (chat) =>
  (chat === null ? TAUGHT : SAID).map(({ turns = [], ...rest }) => ({ ...rest, turns: turns.map(([role, text]) => ({ role, text })) }));
