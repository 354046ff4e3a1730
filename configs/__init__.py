"""Configs of experiments; each holds `get_config(mode)` and a docstring with question, command, cost and result."""
