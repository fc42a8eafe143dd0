"""The atlas of a data set: its folder, what is read from it, and its page. Reads without torch."""
