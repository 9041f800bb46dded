"""The parts of a simulation: neurons, spike trains, traces, files."""
