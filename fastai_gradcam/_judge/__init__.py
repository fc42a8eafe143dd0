"""The work of `judge`: interventions, a look at the set, trials, and the rule. Knows torch and the engine only."""
