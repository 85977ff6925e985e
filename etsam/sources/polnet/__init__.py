"""PolNet: driving the simulator, and reading the tomograms that it leaves."""
