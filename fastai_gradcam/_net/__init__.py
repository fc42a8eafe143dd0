"""Networks as they are: what they are given, what they return, their layers, and copies to look at."""
