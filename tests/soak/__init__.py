"""Long runs by hand: what must stay right for hours."""
