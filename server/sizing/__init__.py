"""How large a deployment has to be, from what serving costs."""
