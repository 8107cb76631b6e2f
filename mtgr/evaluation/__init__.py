"""How good recommendation lists are, by the field's protocols: full rankings, held-out targets, intervals."""
