"""What a folder that serves holds, and what is kept in it."""
