"""Adapters in models: where they begin, how they train, and what they are written as."""
