"""How good a map is: metrics, baselines and intervals behind the door `faithfulness`. Knows torch and the engine."""
