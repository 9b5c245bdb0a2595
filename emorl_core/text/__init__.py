"""Text to token ids and back: prompts, chats, templates, the tokenizer."""
