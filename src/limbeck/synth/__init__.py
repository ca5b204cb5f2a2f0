"""Training data made by models: teachers, self-distillation, filters and their accounting."""
