"""What every Ray driver shares: connecting, placement, ranks, the board, metrics."""
