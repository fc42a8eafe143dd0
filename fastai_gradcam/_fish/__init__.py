"""The drawn fish of the demo."""
