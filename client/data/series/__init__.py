"""Time series: tables with times, on a grid with gaps, cut into pairs of past and future."""
