"""Dictionaries under matched conditions; see ``__main__``."""
