"""What a trained model is for: likelihood, samples, edits, explanations."""
