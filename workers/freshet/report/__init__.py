"""Results of evaluations as a page: pure functions from `core.evaluation.results` to HTML and SVG."""
