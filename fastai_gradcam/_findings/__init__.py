"""The kinds of findings, one function each, and what they share. May know numpy and pandas only."""
