"""From an event log to a bundle, one file a step: dataset, examples, text, model, losses, train, evaluate, export."""
