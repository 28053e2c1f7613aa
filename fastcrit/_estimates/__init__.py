"""From sums to numbers with errors: averages, lengths, rates, datasets, extrema. Nothing here knows a device."""
