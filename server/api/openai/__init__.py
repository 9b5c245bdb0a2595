"""The OpenAI routes: requests, answers, routes."""
