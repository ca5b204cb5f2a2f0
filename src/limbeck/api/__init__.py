"""The functions behind ``import limbeck``: each builds the config of a verb and runs the job that the command runs."""
