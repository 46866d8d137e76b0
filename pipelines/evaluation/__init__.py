"""What a frozen encoder knows: probes against baselines, health, and the page that says it."""
