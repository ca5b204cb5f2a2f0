"""What verbs share: training job, data source, options, estimates, checks, reports."""
