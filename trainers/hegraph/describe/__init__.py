"""Class descriptions from a chat model: the command, and the rules for good sentences."""
