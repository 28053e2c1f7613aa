"""What users hand over, checked and converted once: arrays, axes, files, devices, optional packages."""
