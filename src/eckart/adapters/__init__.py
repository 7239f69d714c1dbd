"""Parts that adapters are made of: starts, forms, roles, rules and penalties, as functions and values on tensors."""
