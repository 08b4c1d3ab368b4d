"""What int8 and fp8 do to a network: calibration, sensitivity, and what is kept. No torch in it."""
