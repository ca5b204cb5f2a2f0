"""Extra checks of a trained model, and their alarms."""
