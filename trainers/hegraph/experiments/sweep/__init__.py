"""Many runs with one command: a grid of data sets, configurations, methods, shots and seeds."""
