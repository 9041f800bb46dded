"""Online: known units and a stream of samples -> spikes, a few milliseconds behind."""
