"""Where data come from: one module a source, each with open_* functions that return the schema."""
