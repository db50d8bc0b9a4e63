"""Beyond one machine: which of many replicas a request goes to."""
