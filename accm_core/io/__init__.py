"""Recordings in, sortings out: NWB and SpikeInterface."""
