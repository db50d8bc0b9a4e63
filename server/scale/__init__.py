"""Beyond one machine: which of many engines a request goes to, and how they are run on Ray Serve."""
